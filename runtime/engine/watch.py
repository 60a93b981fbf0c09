"""A later command's line to the shim of a running container: send a signal, look at its root, wait for its end."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.engine import frames
from runtime.engine.containers.container import Container


@contextmanager
def short_path(directory: str) -> Iterator[str]:
    """A short name for `directory`: sun_path (unix(7)) holds 107 bytes, and --state may be of any length."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _milliseconds(deadline: float | None) -> float | None:
    """How long to poll: poll(2) takes an int, which is 24 days."""
    return None if deadline is None else min(max(deadline - time.monotonic(), 0.0), 86400.0) * 1000


class Watch:
    """One connection. `close` it, or use it as a context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._splitter = frames.Splitter()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def signal(self, number: int) -> None:
        try:
            self._sock.sendall(frames.pack_number(frames.SIGNAL, number))
        except OSError:
            pass  # it is ending

    def news(self, deadline: float | None = None) -> bool:
        """Wait until the log has grown (True) or everything has ended (False). TimeoutError at `deadline`
        (time.monotonic)."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while not poll.poll(_milliseconds(deadline)):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
        return frames.receive(self._sock, self._splitter) is not None

    def look(self, timeout: float) -> int | None:
        """A descriptor of the container's root, to be closed (oci/newroot.py, look); None when everything has ended.

        TimeoutError: the shim does not answer. The log's growth that it tells meanwhile is dropped.
        """
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        try:
            self._sock.sendall(frames.pack(frames.LOOK))
            while poll.poll(_milliseconds(deadline)):
                data, descriptors = frames.receive_with_descriptors(self._sock, 1)
                if not data:
                    return None
                if descriptors:
                    return descriptors[0]
        except ConnectionError:
            return None
        raise TimeoutError

    def ended(self, timeout: float | None = None) -> bool:
        """Wait until the shim has given everything back, at most `timeout` seconds; whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while self.news(deadline):
                pass
        except TimeoutError:
            return False
        return True


def connect(container: Container) -> Watch | None:
    """A line to the container's shim; None when there is no shim."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(container.run_directory) as path:
            sock.connect(f"{path}/shim.sock")
    except (FileNotFoundError, NotADirectoryError, ConnectionError):
        sock.close()
        return None
    return Watch(sock)
