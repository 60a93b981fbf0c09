"""An answer while it comes: bytes as they arrive, and the difference between a slow server and a stalled one."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from types import TracebackType

from runtime.errors import RegistryError
from runtime.registry.config import Host
from runtime.registry.failures import Unreachable

_BLOCK = 256 << 10
_TRICKLE = 1 << 10  # bytes in the time-out's time; less is as good as none


class Response:
    """`length` is the body's as announced, None when it was not. Not thread-safe; to be closed."""

    def __init__(self, answer: http.client.HTTPResponse, server: Host, done: Callable[[bool], None]) -> None:
        self.url = ""
        self.status, self.headers = answer.status, answer.headers
        self.server = server
        self.length = 0 if answer.length == 0 or answer.isclosed() else answer.length
        self._answer, self._done = answer, done
        self._persistent = not answer.will_close
        self._left = self.length  # of an announced length
        self._ended = self.length == 0
        self._closed = False
        self._mark = (time.monotonic(), 0)
        self._count = 0

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def read(self, most: int = _BLOCK) -> bytes:
        """What has arrived, at least a byte, `most` at most; b"" at the end of the body. Unreachable when the line
        broke before that end, or nearly nothing comes."""
        if self._ended:
            return b""
        try:
            data = self._answer.read1(min(most, _BLOCK if self._left is None else self._left))
        except TimeoutError:
            raise self._stalled() from None
        except (OSError, ssl.SSLError, http.client.HTTPException, ValueError):
            raise self._broke() from None  # ValueError: the size of a chunk is not a number
        if self._left is not None:
            if not data:
                raise self._broke()
            self._left -= len(data)
        self._ended = not data or self._left == 0
        self._count += len(data)
        self._watch()
        return data

    def read_all(self, most: int, what: str) -> bytes:
        """The whole body; RegistryError when it has more than `most` bytes."""
        data = bytearray()
        while block := self.read():
            data += block
            if len(data) > most or (self.length or 0) > most:
                raise RegistryError(f"{self.server.netloc} sends more than {most} bytes as {what}: refused")
        return bytes(data)

    def close(self) -> None:
        """A connection whose answer was read to its end serves the next request, others are closed."""
        if not self._closed:
            self._closed = True
            self._answer.close()
            self._done(self._ended and self._persistent)

    def _watch(self) -> None:
        now = time.monotonic()
        since, before = self._mark
        if now - since >= self.server.timeout:
            if self._count - before < _TRICKLE and not self._ended:
                raise self._stalled()
            self._mark = (now, self._count)

    def _stalled(self) -> Unreachable:
        seconds = f"{self.server.timeout:g} seconds"
        return Unreachable(f"{self.server.netloc} has stalled: next to nothing came for {seconds}", transient=True)

    def _broke(self) -> Unreachable:
        return Unreachable(f"{self.server.netloc} closed the connection in the middle of an answer", transient=True)
