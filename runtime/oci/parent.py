"""The side of the fork that waits: it makes the child and hears how the child is getting on."""

from __future__ import annotations

import os
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


def spawn(birth: child.Birth) -> Child:
    """A child of this process that has done everything but execve.

    ContainerError says which step failed, and there is no process then. The caller must have one thread.
    """
    if not processes.single_threaded():
        raise ContainerError("cannot start a process from a process with several threads")
    ours, theirs = sync.Channel.pair()
    pid = pidfd = -1
    unified = birth.cgroup.open_unified() if birth.cgroup else None
    # Not for a moment may a process of a joined container trace the child, or read its memory or descriptors
    # (CVE-2016-9962). The flag is copied at the fork and lasts until execve.
    dumpable = processes.prctl(consts.PR_GET_DUMPABLE)
    try:
        processes.prctl(consts.PR_SET_DUMPABLE, 0)
        try:
            pid, pidfd = processes.clone3(0 if birth.joins else birth.new, cgroup=unified)
        except OSError as error:  # EAGAIN: the pids limit; ENOSPC: too many namespaces
            raise ContainerError(f"cannot make the container's process: {error.strerror}") from None
        if pid == 0:
            ours.close()
            child.run(birth, theirs)
        theirs.close()
        if birth.joins:
            pid, pidfd = _sibling(ours, pid, pidfd)
        console = _await_ready(ours)
    except BaseException as error:
        ours.close()
        theirs.close()
        status = reap(pid, pidfd) if pid > 0 else 0
        if isinstance(error, EOFError):
            raise ContainerError(f"cannot start the container: its process {_died(status, birth)}") from None
        raise
    finally:
        if dumpable == 1:  # 2, a setuid program's, cannot be set
            processes.prctl(consts.PR_SET_DUMPABLE, dumpable)
        if unified is not None:
            os.close(unified)
    return Child(pid, pidfd, ours, console)


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


def _sibling(channel: sync.Channel, pid: int, pidfd: int) -> tuple[int, int]:
    """The process that joined the namespaces has cloned the real child and ended."""
    message = channel.receive()
    if message.kind == sync.FAULT:
        refuse(message.fields)
    if message.kind != sync.BORN:
        raise EOFError
    born = int(message.fields[0])
    born_pidfd = os.pidfd_open(born)  # ours to wait for, so the number cannot have gone to another process
    os.waitpid(pid, 0)
    os.close(pidfd)
    return born, born_pidfd


def _await_ready(channel: sync.Channel) -> int | None:
    """The console's master, if there is one. EOFError when the child died without a word."""
    console = None
    while True:
        message = channel.receive()
        if message.kind == sync.CONSOLE:
            console = message.fd
        elif message.kind == sync.READY:
            return console
        else:
            if console is not None:
                os.close(console)
            if message.kind == sync.FAULT:
                refuse(message.fields)
            raise EOFError


def _died(status: int, birth: child.Birth) -> str:
    if status == -signal.SIGKILL and birth.cgroup is not None and birth.cgroup.oom_kills():
        return f"needs more memory than the limit of {birth.config.resources.memory_limit} bytes"
    return f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
