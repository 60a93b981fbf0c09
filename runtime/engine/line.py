"""A client's end of the talk with a task (frames.py)."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from runtime.engine import frames
from runtime.engine.frames import Frame


class Line:
    """One connection; `received` holds frames that have come and nobody has looked at yet. `close` it, or use it as a
    context manager. Not thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received: list[Frame] = []
        self._splitter = frames.Splitter()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def send(self, frame: bytes) -> bool:
        """False when the task has ended; its last frames may still have to be read."""
        with suppress(OSError):
            self.sock.sendall(frame)
            return True
        return False

    def unread(self) -> int:
        """How much of what was sent the task has not read yet, 0 for nothing (unix(7), SIOCOUTQ)."""
        return int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def receive(self) -> bool:
        """Add what one read gives to `received`; False at the task's end."""
        found = frames.receive(self.sock, self._splitter)
        self.received += found or []
        return found is not None


@contextmanager
def short_path(directory: str) -> Iterator[str]:
    """A short name for `directory`: sun_path (unix(7)) holds 107 bytes, and --state may be of any length."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
