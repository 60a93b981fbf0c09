"""The side of the fork that waits: it makes the child and hears how the child is getting on.

It can be done without ever blocking, which whoever keeps other processes needs: a child that joins a container may be
in the kernel for long, looking for its command on a union whose server is stopped, or may not move at all, in a
container that is paused.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from typing import NamedTuple, NoReturn

from runtime.errors import CommandNotExecutable, CommandNotFound, ContainerError
from runtime.oci import child, sync
from unionfs.linux import consts, processes


class Child(NamedTuple):
    pid: int
    pidfd: int
    channel: sync.Channel
    console: int | None
    root: int | None


class Birth:
    """A child of this process on its way to having done everything but execve.

    `unreaped` are pidfds, by pid, of processes that this one has to collect: what is left of a birth that failed, and
    the helper of one that succeeded, which ends by itself.
    """

    def __init__(self, plan: child.Plan, channel: sync.Channel, pid: int, pidfd: int) -> None:
        self.channel = channel
        self.unreaped = {pid: pidfd}
        self._plan = plan
        self._first = pid
        self._born = 0
        self._ready = False
        self._console: int | None = None
        self._root: int | None = None

    def fileno(self) -> int:
        """Readable when `advance` has something to hear."""
        return self.channel.fileno()

    def advance(self) -> Child | None:
        """Hear one message: the child when it is ready. ContainerError says which step failed; then there is no
        process any more but those in `unreaped`, and they have been killed.

        Where there are namespaces to join two processes talk: the one that joined says BORN, the one that it cloned
        says the rest, and which of them the scheduler lets speak first is open.
        """
        try:
            self._hear(self.channel.receive())
        except BaseException:
            self.give_up()
            raise
        if not self._ready or (self._plan.joins and not self._born):
            return None
        pid = self._born or self._first
        return Child(pid, self.unreaped.pop(pid), self.channel, self._console, self._root)

    def _hear(self, message: sync.Message) -> None:
        if message.kind == sync.BORN:
            self._born = int(message.fields[0])
            self.unreaped[self._born] = os.pidfd_open(self._born)
        elif message.kind == sync.ROOT:
            self._root = message.fd
        elif message.kind == sync.CONSOLE:
            self._console = message.fd
        elif message.kind == sync.READY:
            self._ready = True
        elif message.kind == sync.FAULT:
            refuse(message.fields)
        else:  # all of them have ended: their copies of the channel's other end are closed
            pid = self._born or self._first
            status = _collect(pid, self.unreaped.pop(pid))
            raise ContainerError(f"cannot start the container: its process {self._end(status)}")

    def _end(self, status: int) -> str:
        cgroup = self._plan.cgroup
        if status == -signal.SIGKILL and cgroup is not None and cgroup.oom_kills():
            limit = self._plan.memory_limit
            return "needs more memory than the " + (f"limit of {limit} bytes" if limit else "container has")
        return f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"

    def give_up(self) -> None:
        """Kill what there is of it, and let go of what it has handed over."""
        for pidfd in self.unreaped.values():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # a zombie takes it too
        self.channel.close()
        for fd in (self._console, self._root):
            if fd is not None:
                os.close(fd)
        self._console = self._root = None

    def reap(self) -> None:
        """Collect what is to be collected, waiting for it."""
        while self.unreaped:
            _collect(*self.unreaped.popitem())


def begin(plan: child.Plan) -> Birth:
    """ContainerError if there cannot be such a process. The caller must have one thread."""
    if not processes.single_threaded():
        raise ContainerError("cannot start a process from a process with several threads")
    ours, theirs = sync.Channel.pair()
    try:
        return Birth(plan, ours, *_clone(plan, ours, theirs))
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


def spawn(plan: child.Plan) -> Child:
    """A child of this process that has done everything but execve.

    ContainerError says which step failed; there is no process then. The caller must have one thread.
    """
    birth = begin(plan)
    try:
        while True:
            if (born := birth.advance()) is not None:
                return born
    finally:
        birth.reap()


def _clone(plan: child.Plan, ours: sync.Channel, theirs: sync.Channel) -> tuple[int, int]:
    """(pid, pidfd) of the child, in which this does not return."""
    unified = plan.cgroup.open_unified() if plan.cgroup else None
    # Not for a moment may a process of a joined container trace the child, or read its memory or descriptors
    # (CVE-2016-9962). The flag is copied at the fork and lasts until execve.
    dumpable = processes.prctl(consts.PR_GET_DUMPABLE)
    try:
        processes.prctl(consts.PR_SET_DUMPABLE, 0)
        pid, pidfd = processes.clone3(0 if plan.joins else plan.new, cgroup=unified)
    except OSError as error:  # EAGAIN: the pids limit; ENOSPC: too many namespaces
        raise ContainerError(f"cannot make the container's process: {error.strerror}") from None
    else:
        if pid == 0:
            ours.close()
            child.run(plan, theirs)
        return pid, pidfd
    finally:
        if dumpable == 1:  # 2, a setuid program's, cannot be set
            processes.prctl(consts.PR_SET_DUMPABLE, dumpable)
        if unified is not None:
            os.close(unified)


def _collect(pid: int, pidfd: int) -> int:
    """The exit code, or minus the signal, of a process that has ended or is about to."""
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def collect_strays(known: Collection[int]) -> bool:
    """Collect those children in inner pid namespaces that have ended and are not `known`; whether one is left alive.
    Not to be called before every birth of this process's has said BORN: its pid could be another's by then.

    A process that joins a container may be killed, for the memory limit say, between cloning its sibling and saying
    BORN. The sibling ends when its channel is closed, is a child of this process, and would keep its container from
    ending. So would any that an added process makes with CLONE_PARENT (clone(2)).
    """
    alive = False
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as children:
            strays = {int(pid) for pid in children.read().split()}.difference(known)
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN: nobody knows of them
        return False
    for pid in strays:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        if len(fields["NSpid"].split()) > 1:
            alive |= os.waitpid(pid, os.WNOHANG) == (0, 0)
    return alive


def refuse(fields: tuple[str, ...]) -> NoReturn:
    """Raise what a FAULT message says."""
    fault = sync.Fault(*fields)
    kinds = {sync.NOT_FOUND: CommandNotFound, sync.NOT_EXECUTABLE: CommandNotExecutable}
    raise kinds.get(fault.meaning, ContainerError)(f"cannot {fault.step}: {fault.reason}")
