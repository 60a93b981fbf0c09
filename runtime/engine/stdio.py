"""The streams of a container's process: pipes, or a terminal; the process's ends and ours."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from runtime.oci.container import Stdio
from unionfs.linux import consts

# The most that waits in a pty to be read by its master: 8 KiB on their way (pty.c, tty_buffer_set_limit) and 4 KiB that
# have arrived (N_TTY_BUF_SIZE), with room to spare.
_OF_A_TERMINAL = 1 << 16


class Ends:
    """Our ends: descriptors that do not block, -1 where there is none. With a terminal there is only `console`.

    They are its own from the beginning, and are closed if it cannot be made (OSError).
    """

    def __init__(self, *, console: int = -1, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> None:
        self.console, self.stdin, self.stdout, self.stderr = console, stdin, stdout, stderr
        self._peer = -1
        try:
            for fd in self._open():
                os.set_blocking(fd, False)
            if console >= 0:
                self._peer = _other_end(console)
        except BaseException:
            self.close()
            raise

    @property
    def input(self) -> int:
        return self.console if self.console >= 0 else self.stdin

    def _open(self) -> list[int]:
        return [fd for fd in (self.console, self.stdin, self.stdout, self.stderr) if fd >= 0]

    def holds(self, fd: int) -> int:
        """At least the bytes that one of our ends holds to be read when nobody writes to it any more."""
        if fd == self.console:
            return _OF_A_TERMINAL
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size, if there is one; the processes in front hear of it by SIGWINCH."""
        if self.console >= 0:
            fcntl.ioctl(self.console, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end_input(self) -> None:
        """The end of file for the reader of a pipe. A terminal's end is a character that its user types."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> None:
        for fd in self._open():
            os.close(fd)
        if self._peer >= 0:
            os.close(self._peer)
        self.console = self.stdin = self.stdout = self.stderr = self._peer = -1


def _other_end(console: int) -> int:
    """The slave of a pty, by its master, whatever /dev/pts is mounted where (ioctl_tty(2)).

    While it is open here too, a terminal that no process has open at the moment reads as quiet and not, for ever and
    at once, as hung up (tty_io.c).
    """
    return fcntl.ioctl(console, consts.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def pipes(*, stdin: bool) -> tuple[Stdio, Ends]:
    """The process's ends and ours. Without `stdin` its standard input is /dev/null."""
    opened: list[int] = []
    try:
        if stdin:
            opened += os.pipe2(os.O_CLOEXEC)
        else:
            opened += os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
        opened += os.pipe2(os.O_CLOEXEC)
        opened += os.pipe2(os.O_CLOEXEC)
    except BaseException:
        for fd in opened:
            if fd >= 0:
                os.close(fd)
        raise
    their_in, our_in, our_out, their_out, our_err, their_err = opened
    return Stdio(their_in, their_out, their_err), Ends(stdin=our_in, stdout=our_out, stderr=our_err)
