"""A standard output of ours: a queue that never keeps its owner waiting."""

from __future__ import annotations

import fcntl
import os
import select
import stat
from contextlib import suppress

from runtime.engine import frames
from unionfs.linux import files


class Output:
    """One of our output streams: a queue that is written as far as the stream takes it without waiting."""

    # POSIX: a pipe that polls writable takes this many bytes at once.
    PIPE_BUF = 4096

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.queue = bytearray()
        self._closed = False
        self._own, self._step = fd, self.PIPE_BUF
        try:
            kind, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
            if stat.S_ISREG(kind) or flags & os.O_NONBLOCK:
                self._step = frames.CHUNK
            elif stat.S_ISFIFO(kind) and flags & os.O_ACCMODE != os.O_RDONLY:
                # Opened anew a pipe says itself how much it takes: whoever else has this one must not be told EAGAIN.
                with suppress(OSError):
                    self._own, self._step = files.reopen(fd, os.O_WRONLY), frames.CHUNK
        except OSError:
            self._closed = True

    def add(self, data: bytes) -> None:
        """Queue it, and write what can be written without asking first."""
        if not self._closed:
            self.queue += data
            if self._step == frames.CHUNK:
                self.write()

    def write(self) -> None:
        try:
            with memoryview(self.queue)[: self._step] as piece:
                written = os.write(self._own, piece)
            del self.queue[:written]
        except BlockingIOError:
            pass
        except OSError:
            self._closed = True  # nobody reads it (`| head`), or its disk is full: the container goes on
            self.queue.clear()

    def drain(self) -> None:
        """Write all, waiting for the reader."""
        while self.queue:
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            poll.poll()
            self.write()

    def close(self) -> None:
        """Let go of what is not the caller's."""
        if self._own != self.fd:
            os.close(self._own)
            self._own = self.fd
