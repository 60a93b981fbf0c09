"""The streams of a container's process: pipes, or a terminal; the process's ends and ours."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from runtime.oci.container import Stdio
from unionfs.linux import consts


class Ends:
    """Our ends: descriptors that do not block, -1 where there is none. With a terminal there is only `console`."""

    def __init__(self, *, console: int = -1, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> None:
        self.console, self.stdin, self.stdout, self.stderr = console, stdin, stdout, stderr
        for fd in self._open():
            os.set_blocking(fd, False)
        # With the other end of a pty open here too, a terminal that no process has open at the moment reads as quiet
        # and not, for ever and at once, as hung up (tty_io.c). Opened by its master, whatever /dev/pts is mounted
        # where (ioctl_tty(2)).
        self._peer = -1
        if console >= 0:
            self._peer = fcntl.ioctl(console, consts.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    @property
    def input(self) -> int:
        return self.console if self.console >= 0 else self.stdin

    def _open(self) -> list[int]:
        return [fd for fd in (self.console, self.stdin, self.stdout, self.stderr) if fd >= 0]

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size, if there is one; the processes in front hear of it by SIGWINCH."""
        if self.console >= 0:
            fcntl.ioctl(self.console, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end_input(self) -> None:
        """The end of file for whoever reads a pipe. A terminal's end is a character that its user types."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> None:
        for fd in self._open():
            os.close(fd)
        if self._peer >= 0:
            os.close(self._peer)
        self.console = self.stdin = self.stdout = self.stderr = self._peer = -1


def pipes(*, stdin: bool) -> tuple[Stdio, Ends]:
    """The process's ends and ours. Without `stdin` its standard input is /dev/null."""
    if stdin:
        their_in, our_in = os.pipe2(os.O_CLOEXEC)
    else:
        their_in, our_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
    our_out, their_out = os.pipe2(os.O_CLOEXEC)
    our_err, their_err = os.pipe2(os.O_CLOEXEC)
    return Stdio(their_in, their_out, their_err), Ends(stdin=our_in, stdout=our_out, stderr=our_err)
