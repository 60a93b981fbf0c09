"""The side of the fork that waits: it makes the child and hears how the child is getting on."""

from __future__ import annotations

import os
import select
import signal
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


class _Heard(NamedTuple):
    """What the child had to say until it was ready, or until nobody of it was left."""

    ready: bool = False
    born: int | None = None
    console: int | None = None
    root: int | None = None
    fault: tuple[str, ...] | None = None


def spawn(birth: child.Birth, hangup: int | None = None) -> Child:
    """A child of this process that has done everything but execve.

    ContainerError says which step failed, or that `hangup` has become readable; there is no process then. The caller
    must have one thread.
    """
    if not processes.single_threaded():
        raise ContainerError("cannot start a process from a process with several threads")
    ours, theirs = sync.Channel.pair()
    made: list[tuple[int, int]] = []  # (pid, pidfd) of children to collect; the last is the container's
    handed: list[int] = []
    try:
        made.append(_clone(birth, ours, theirs))
        theirs.close()
        heard = _listen(ours, joins=bool(birth.joins), hangup=hangup)
        handed += (fd for fd in (heard.console, heard.root) if fd is not None)
        if heard.born is not None:
            made.append((heard.born, os.pidfd_open(heard.born)))
        if heard.fault is not None:
            refuse(heard.fault)
        if not heard.ready:
            raise ContainerError(f"cannot start the container: its process {_end(reap(*made.pop()), birth)}")
        pid, pidfd = made.pop()
        while made:
            joiner, joiner_pidfd = made.pop()  # it has said its only word, and ends
            os.waitpid(joiner, 0)
            os.close(joiner_pidfd)
        return Child(pid, pidfd, ours, heard.console, heard.root)
    except BaseException:
        ours.close()
        theirs.close()
        for fd in handed:
            os.close(fd)
        while made:
            reap(*made.pop())
        raise


def _clone(birth: child.Birth, ours: sync.Channel, theirs: sync.Channel) -> tuple[int, int]:
    """(pid, pidfd) of the child, in which this does not return."""
    unified = birth.cgroup.open_unified() if birth.cgroup else None
    # Not for a moment may a process of a joined container trace the child, or read its memory or descriptors
    # (CVE-2016-9962). The flag is copied at the fork and lasts until execve.
    dumpable = processes.prctl(consts.PR_GET_DUMPABLE)
    try:
        processes.prctl(consts.PR_SET_DUMPABLE, 0)
        pid, pidfd = processes.clone3(0 if birth.joins else birth.new, cgroup=unified)
    except OSError as error:  # EAGAIN: the pids limit; ENOSPC: too many namespaces
        raise ContainerError(f"cannot make the container's process: {error.strerror}") from None
    else:
        if pid == 0:
            ours.close()
            child.run(birth, theirs)
        return pid, pidfd
    finally:
        if dumpable == 1:  # 2, a setuid program's, cannot be set
            processes.prctl(consts.PR_SET_DUMPABLE, dumpable)
        if unified is not None:
            os.close(unified)


def receive(channel: sync.Channel, hangup: int | None) -> sync.Message:
    """The child's next message. ContainerError once `hangup` is readable: nobody wants the child any more, which may
    be in the kernel for long, as one is that looks for its command on a union whose server is stopped."""
    if hangup is not None:
        poll = select.poll()
        for fd in (channel.fileno(), hangup):
            poll.register(fd, select.POLLIN)
        if channel.fileno() not in (fd for fd, _ in poll.poll()):
            raise ContainerError("the process is not wanted any more")
    return channel.receive()


def _listen(channel: sync.Channel, *, joins: bool, hangup: int | None = None) -> _Heard:
    """Until there is all that is needed, or the end. With `joins` two processes talk: the one that joined says BORN,
    the one it cloned says the rest, and which of them the scheduler lets speak first is open."""
    heard = _Heard()
    while not heard.ready or (joins and heard.born is None):
        message = receive(channel, hangup)
        if message.kind == sync.BORN:
            heard = heard._replace(born=int(message.fields[0]))
        elif message.kind == sync.ROOT:
            heard = heard._replace(root=message.fd)
        elif message.kind == sync.CONSOLE:
            heard = heard._replace(console=message.fd)
        elif message.kind == sync.READY:
            heard = heard._replace(ready=True)
        elif message.kind == sync.FAULT:
            heard = heard._replace(fault=message.fields)
        else:
            return heard._replace(ready=False)
    return heard


def reap(pid: int, pidfd: int) -> int:
    """Kill the child, if it lives, and collect it: its exit code or minus its signal."""
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # a zombie takes it too
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refuse(fields: tuple[str, ...]) -> NoReturn:
    """Raise what a FAULT message says."""
    fault = sync.Fault(*fields)
    kinds = {sync.NOT_FOUND: CommandNotFound, sync.NOT_EXECUTABLE: CommandNotExecutable}
    raise kinds.get(fault.meaning, ContainerError)(f"cannot {fault.step}: {fault.reason}")


def _end(status: int, birth: child.Birth) -> str:
    if status == -signal.SIGKILL and birth.cgroup is not None and birth.cgroup.oom_kills():
        return f"needs more memory than the limit of {birth.config.resources.memory_limit} bytes"
    return f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
