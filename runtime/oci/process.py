"""A process of a container, seen by its parent: wait for it, signal it."""

from __future__ import annotations

import os
import select
import signal

from runtime.errors import ContainerError
from runtime.oci import parent, sync


class Init:
    """A process of a container, child of this process: the first one, or one that was added.

    `pid` is the caller's number for it, `pidfd` becomes readable when it ends, `console` is the master of its pty
    or None, `root` of a first process a look at the container's root (newroot.look) or None; the caller closes the
    console, `wait` the rest.
    """

    # Those of this process that nobody has collected yet, by pidfd.
    _alive: dict[int, Init] = {}

    def __init__(self, child: parent.Child) -> None:
        self.pid = child.pid
        self.pidfd = child.pidfd
        self.console = child.console
        self.root = child.root
        self.code: int | None = None  # as docker gives it, once it was collected
        self._channel = child.channel
        self._alive[self.pidfd] = self

    def fileno(self) -> int:
        """Readable when `started` of an added process has something to hear."""
        return self._channel.fileno()

    def leave(self) -> None:
        """Of a first process: let it wait for its start even when this process has ended. Whose child it is then,
        and who hears of its end, is up to the system."""
        self._channel.send(sync.LEAVE)
        self._channel.close()

    def begin(self) -> None:
        """Of an added process: have it execute its command. BrokenPipeError if it has ended."""
        self._channel.send(sync.START)

    def started(self) -> None:
        """Return when the command runs, or was killed just before. CommandNotFound, CommandNotExecutable or
        ContainerError: it cannot be run, and the process ends."""
        try:
            message = self._channel.receive()
        finally:
            self._channel.close()
        if message.kind == sync.FAULT:
            parent.refuse(message.fields)

    def start(self) -> None:
        """`begin`, and `started`, waiting for both."""
        try:
            self.begin()
            self.started()
        except BrokenPipeError:
            self._channel.close()  # it was killed before it was started: wait has the code
        except ContainerError:
            self.wait()
            raise

    def wait(self) -> int:
        """The exit code as docker gives it, when the process has ended: its code, or 128 and its signal.

        Added processes of this caller's that end meanwhile are collected too. The first process of a pid namespace
        does not end before its namespace is empty (kernel/pid_namespace.c, zap_pid_ns_processes), and a zombie that
        waits for this very caller would keep it for ever.
        """
        while self.code is None:
            poll = select.poll()
            for pidfd in self._alive:
                poll.register(pidfd, select.POLLIN)
            for pidfd, _ in poll.poll():
                self._alive[pidfd].collect()
        return self.code

    def collect(self, *, waiting: bool = True) -> int | None:
        """`wait` of a process that has ended, as its pidfd says. None when not even that is to be waited for: one that
        is traced is collected when its tracer has let go of it, and SIGCHLD tells of that (ptrace(2), wait(2))."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, 0 if waiting else os.WNOHANG)
            if pid == 0:
                return None
            status = os.waitstatus_to_exitcode(status)
            self.code = 128 - status if status < 0 else status
            del self._alive[self.pidfd]
            self._channel.close()
            os.close(self.pidfd)
            if self.root is not None:
                os.close(self.root)
                self.root = None
        return self.code

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal. Once it was collected this does nothing."""
        if self.code is None:
            signal.pidfd_send_signal(self.pidfd, signum)
