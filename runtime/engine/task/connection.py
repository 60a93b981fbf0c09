"""One client of the task: what it sent, and what is to be sent to it. Nothing but `finish` waits here."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress

from drivers.errors import DriverError
from runtime.engine import frames
from runtime.engine.frames import Frame, Splitter
from runtime.errors import RuntimeFault, sentence

# Bytes that may be queued for a client that nothing waits for: an attached one that reads too slowly gets no more.
BOUND = 1 << 20


class Connection:
    """`sock` is None once either side has hung up; `outbox` is what waits to be sent."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock: socket.socket | None = sock
        self.outbox = bytearray()
        self.ending = False  # nothing is read from it any more, and with the last of the outbox it is hung up on
        self._look = -1
        self._splitter = Splitter()

    def send(self, frame: bytes) -> None:
        """Queue a frame, and send what can be sent without waiting."""
        if self.sock is not None:
            self.outbox += frame
            self.flush()

    def offer(self, frame: bytes) -> None:
        """The same, or hang up on a client that does not read what it is sent."""
        self.send(frame)
        if len(self.outbox) > BOUND:
            self.hang_up()

    def tell(self, frame: bytes) -> None:
        """The same for a notice: a client that has something to read already needs no more of them."""
        if not self.outbox:
            self.send(frame)

    def refuse(self, error: Exception, *, tried: str, besides: str = "") -> None:
        """Tell it of an error in what was `tried`, and of what went wrong `besides`."""
        name, message = _named(error, tried)
        told = f"{message}; {besides}" if besides else message
        self.send(frames.pack_json(frames.FAULT, {"fault": name, "message": told}))

    def hand(self, fd: int) -> None:
        """Send a LOOK with a descriptor as soon as nothing else is queued; the caller may close its own at any time."""
        self._forget_look()
        self._look = os.dup(fd)
        self.flush()

    def _forget_look(self) -> None:
        if self._look >= 0:
            os.close(self._look)
            self._look = -1

    def flush(self) -> None:
        try:
            while self.sock is not None and self.outbox:
                del self.outbox[: self.sock.send(self.outbox)]
            if self.sock is not None and self._look >= 0:
                socket.send_fds(self.sock, [frames.pack(frames.LOOK)], [self._look])
                self._forget_look()
        except BlockingIOError:
            return
        except OSError:
            self.hang_up()
        else:
            if self.ending:
                self.hang_up()

    def end(self) -> None:
        """Hang up when everything is sent. Until then what it sends is refused (EPIPE), so that a client whose own
        reader is slow knows that there is nobody left to pass a signal on to."""
        if self.sock is not None:
            with suppress(OSError):  # it has gone
                self.sock.shutdown(socket.SHUT_RD)
            self.ending = True
            self.flush()

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self.outbox) or self._look >= 0

    def receive(self) -> list[Frame]:
        if self.sock is None or self.ending:
            return []
        try:
            found = frames.receive(self.sock, self._splitter)
        except ValueError:
            found = None
        if found is None:
            self.hang_up()
        return found or []

    def receive_with_descriptors(self) -> tuple[Frame, list[int]] | None:
        """The first frame, waiting for it, and the descriptors that came with it; None if there comes none."""
        assert self.sock is not None
        self.sock.setblocking(True)
        descriptors: list[int] = []
        while True:
            data, came = frames.receive_with_descriptors(self.sock, 1)
            descriptors += came
            if not data:
                return None
            for frame in self._splitter.feed(data):
                self.sock.setblocking(False)
                return frame, descriptors

    def hang_up(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None
            self.outbox.clear()
            self._forget_look()


def _named(error: Exception, tried: str) -> tuple[str, str]:
    """The class name and the line to report an error with."""
    if isinstance(error, RuntimeFault):
        return type(error).__name__, sentence(error)
    if isinstance(error, DriverError):
        return RuntimeFault.__name__, sentence(error)
    if isinstance(error, OSError):
        return RuntimeFault.__name__, f"cannot {tried}: {sentence(error)}"
    sys.excepthook(type(error), error, error.__traceback__)  # seen with --debug only: standard error is /dev/null
    return RuntimeFault.__name__, f"internal error: {type(error).__name__}: {sentence(error)}"


def finish(connections: Iterable[Connection]) -> None:
    """Send each what waits for it, waiting for those that read slowly, and hang up."""
    left = list(connections)
    for connection in left:
        connection.end()
    while left := [connection for connection in left if connection.sock is not None]:
        poll = select.poll()
        by_fd = {connection.sock.fileno(): connection for connection in left if connection.sock is not None}
        for fd in by_fd:
            poll.register(fd, select.POLLOUT)
        for fd, _ in poll.poll():
            by_fd[fd].flush()
