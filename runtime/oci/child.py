"""The side of the fork that becomes the container. Single-threaded, and it ends in execve or os._exit.

What is done is a list of steps, each with the words that an error is reported by. Nothing may be imported once the
process runs: by then the file system may be the image's, and a module would be the image's code run as the host's.
"""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn

from runtime.oci import caps, command, newroot, seccomp, spec, sync, terminal
from runtime.oci.cgroups import Cgroup
from runtime.oci.inroot import Root
from unionfs.linux import consts, processes

_CHANNEL_FD = 3
_LISTENER_FD = 4
# How many may be connected to the listener and say nothing, before the first of them is hung up on.
_MOST_CALLERS = 8

Step = tuple[str, Callable[[], None]]


class Plan(NamedTuple):
    """What the parent decided before the fork; the child only carries it out."""

    process: spec.Process
    config: spec.Spec | None  # None: a process that is added to a container
    cgroup: Cgroup | None
    root_steps: tuple[newroot.RootfsStep, ...] | None  # None: the root of the joined container
    root: int | None  # descriptor of the root file system, where the steps want it as one
    files: int | None  # and of the one with the files that they bind
    new: int  # clone flags of the namespaces to make, but those that steps make: the cgroup and mount namespaces
    new_cgroup: bool
    joins: tuple[tuple[int, int], ...]  # (descriptor of a namespace or pidfd, clone flags) for setns
    stdio: tuple[int, int, int] | None  # None: /dev/null
    listener: int | None = None  # the socket on which a new container's first process waits for its start

    @property
    def memory_limit(self) -> int | None:
        return self.config.resources.memory_limit if self.config else None


def run(plan: Plan, channel: sync.Channel) -> NoReturn:
    """From its birth to execve; `channel` is the child's end of the socketpair."""
    step = "prepare the process"
    try:
        joins, work, channel = _keep_only(plan, channel)
        for step, action in _steps(plan, joins, work, channel):  # noqa: B007  a fault names the step it was in
            action()
        channel.send(sync.READY)
        channel = _await_start(channel, None if plan.listener is None else _LISTENER_FD)
        command.execute(plan.process.args, command.environment(plan.process.env))
    except command.CommandFault as error:
        _report(channel, error.fault)
    except OSError as error:
        named = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        _report(channel, sync.Fault(sync.FAILED, step, f"{error.strerror or error}{named}"))
    except BaseException as error:  # a bug must be told, and must not run on as a second parent
        _report(channel, sync.Fault(sync.FAILED, step, f"{type(error).__name__}: {error}"))
    finally:
        os._exit(1)


def _report(channel: sync.Channel, fault: sync.Fault) -> None:
    try:
        fault.send(channel)
    except OSError:
        pass  # nobody is left to be told


def _await_start(channel: sync.Channel, listener: int | None) -> sync.Channel:
    """The channel to whoever has said START, to be told of a command that cannot be executed.

    With a listener that is anybody who connects to it: our parent may have said that it leaves (LEAVE). If it ends
    without a word, or says another, nobody wants this process any more.
    """
    if listener is None:
        if channel.receive().kind != sync.START:
            os._exit(0)
        return channel
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    poll.register(listener, select.POLLIN)
    starts = socket.socket(fileno=listener)
    callers: dict[int, sync.Channel] = {}  # who has connected and said nothing yet, the oldest first
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if channel.fileno() in ready:
            poll.unregister(channel.fileno())
            if channel.receive().kind != sync.LEAVE:
                os._exit(0)
        for fd in ready & set(callers):
            caller = callers.pop(fd)
            poll.unregister(fd)
            if caller.receive().kind == sync.START:
                with suppress(OSError):  # whoever said it may not live to hear that it was heard
                    caller.send(sync.STARTING)
                return caller
            caller.close()  # it has only looked whether anybody waits here
        if listener in ready:
            if len(callers) == _MOST_CALLERS:
                oldest = next(iter(callers))
                poll.unregister(oldest)
                callers.pop(oldest).close()
            caller = sync.Channel(starts.accept()[0])
            callers[caller.fileno()] = caller
            poll.register(caller.fileno(), select.POLLIN)


def _keep_only(plan: Plan, channel: sync.Channel) -> tuple[list[tuple[int, int]], newroot.Work, sync.Channel]:
    """Standard input, output and error as asked, the channel as 3, the listener as 4 if there is one, the namespaces to
    join, the root and the files that are given, and nothing else open.

    It comes before anything is shared with a container: a descriptor of the host's that is still open then is a way
    to the host (CVE-2016-9962, CVE-2024-21626).
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    wanted = [*(plan.stdio or (null, null, null)), channel.detach()]
    wanted += [] if plan.listener is None else [plan.listener]
    first_join = len(wanted)
    wanted += [fd for fd, _ in plan.joins]
    given = [fd for fd in (plan.root, plan.files) if fd is not None]
    wanted += given
    # First out of the way of the numbers they shall have: the caller's may be any, in any order.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in wanted]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _CHANNEL_FD)
    processes.close_range(len(wanted))
    joins = [(number, flags) for number, (_, flags) in enumerate(plan.joins, first_join)]
    numbers = dict(zip(given, range(len(wanted) - len(given), len(wanted)), strict=True))
    work = newroot.Work(*(-1 if fd is None else numbers[fd] for fd in (plan.root, plan.files)))
    return joins, work, sync.Channel.adopt(_CHANNEL_FD)


def _steps(
    plan: Plan, joins: list[tuple[int, int]], work: newroot.Work, channel: sync.Channel
) -> list[Step]:  # fmt: skip
    process, console = plan.process, _Console()
    steps: list[Step] = [("prepare the process", _forget_the_parent)]
    if plan.cgroup is not None:
        steps.append(("enter the cgroups", plan.cgroup.enter))
    if process.oom_score_adj is not None:
        steps.append(("set oom_score_adj", _writer("/proc/self/oom_score_adj", str(process.oom_score_adj))))
    if joins:
        steps.append(("join the namespaces", lambda: _join(joins)))
        steps.append(("make a process in the namespaces", lambda: _clone_sibling(plan.new, channel)))
    if plan.new_cgroup:  # after the cgroups were entered: they become the namespace's root
        steps.append(("make a cgroup namespace", lambda: processes.unshare(consts.CLONE_NEWCGROUP)))
    steps.append(("start a session", os.setsid))
    if plan.root_steps is not None and plan.config is not None:
        steps += _creation(plan.config, plan.root_steps, work, console, channel)
    elif process.terminal:
        steps.append(("open a terminal", lambda: console.open(Root(os.open("/", os.O_PATH)), process, bind=False)))
    if process.terminal:
        steps.append(("hand the terminal out", lambda: console.hand_out(channel)))
    steps += [
        (f"enter the working directory {process.cwd}", lambda: _enter_directory(process.cwd)),
        ("set the resource limits", lambda: _set_rlimits(process.rlimits)),
        ("leave the session keyring", processes.join_new_session_keyring),
    ]
    administers = bool(process.capabilities.bounding & caps.mask(["CAP_SYS_ADMIN"]))
    steps += [
        # While this process still may (seccomp(2)); what follows is not what the filter refuses.
        ("filter the system calls", lambda: seccomp.install(user_namespaces=administers)),
        ("become the container's user", lambda: _become(process)),
    ]
    if process.no_new_privileges:
        steps.append(("set no_new_privs", lambda: _prctl(consts.PR_SET_NO_NEW_PRIVS, 1)))
    steps.append(("close what is open", lambda: processes.close_range(_CHANNEL_FD, flags=consts.CLOSE_RANGE_CLOEXEC)))
    return steps


def _creation(
    config: spec.Spec, root_steps: tuple[newroot.RootfsStep, ...], work: newroot.Work, console: _Console,
    channel: sync.Channel,
) -> list[Step]:  # fmt: skip
    process, hostname, domainname = config.process, config.hostname, config.domainname
    steps: list[Step] = []
    if hostname:
        steps.append((f"set the hostname {hostname}", lambda: processes.sethostname(hostname)))
    if domainname:
        steps.append((f"set the domain name {domainname}", lambda: processes.setdomainname(domainname)))
    if config.namespaces.get("network", "host") is None:
        steps.append(("bring the loopback up", _loopback_up))
    # Through the host's /proc, while it is the only one in sight: no image can redirect the write (CVE-2025-52881).
    # Whose value it is follows from the namespaces of the process that writes.
    for name, value in config.sysctl:
        steps.append((f"set sysctl {name}", _writer(f"/proc/sys/{name.replace('.', '/')}", value)))
    for step in root_steps:
        steps.append((step.describe(), _applier(step, work)))
    if process.terminal:
        steps.append(("open a terminal", lambda: console.open(work.root, process, bind=True)))
    steps.append(("hand out a look at the root", lambda: _hand_out_root(work.root, channel)))
    return steps


def _hand_out_root(root: Root, channel: sync.Channel) -> None:
    fd = newroot.look(root)
    channel.send(sync.ROOT, fd=fd)
    os.close(fd)
    root.close()


def _applier(step: newroot.RootfsStep, work: newroot.Work) -> Callable[[], None]:
    return lambda: step.apply(work)


def _writer(path: str, value: str) -> Callable[[], None]:
    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    return write


class _Console:
    """The pty, between the step that makes it and the one that hands it out."""

    def __init__(self) -> None:
        self.master = self.slave = -1

    def open(self, root: Root, process: spec.Process, *, bind: bool) -> None:
        self.master, self.slave = terminal.open_pty(root, process.console_size, process.uid)
        if bind:
            terminal.bind_console(root, self.slave)

    def hand_out(self, channel: sync.Channel) -> None:
        terminal.control(self.slave)
        channel.send(sync.CONSOLE, fd=self.master)
        os.close(self.master)


def _forget_the_parent() -> None:
    """What a fork copies and an execve keeps, set back; and no import from here on.

    The parent's arguments and environment, which a container would see of a process that joins it, are its own.
    """
    for memory in processes.invocation():
        memory[:] = bytes(len(memory))
    gc.disable()
    sys.meta_path.clear()
    for number in signal.valid_signals():
        # Python itself ignores SIGPIPE and SIGXFSZ, and what is ignored stays ignored in the command.
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0)


def _loopback_up() -> None:
    """In a new network namespace lo is there and down. See netdevice(7), SIOCSIFFLAGS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        fcntl.ioctl(end, consts.SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", consts.IFF_UP))


def _join(joins: list[tuple[int, int]]) -> None:
    for fd, flags in joins:
        processes.setns(fd, flags)
        os.close(fd)


def _clone_sibling(new: int, channel: sync.Channel) -> None:
    """Returns in a sibling of this process, which ends: a joined pid namespace holds for new processes only
    (setns(2)). As the sibling is nobody's child here, the parent waits for it like for any container."""
    pid, _ = processes.clone3(new | consts.CLONE_PARENT)
    if pid:
        channel.send(sync.BORN, str(pid))
        os._exit(0)


def _enter_directory(path: str) -> None:
    os.chdir(path)
    # Through a link to a descriptor of the host's it would be a directory outside the root; getcwd then fails, or
    # says "(unreachable)" (CVE-2024-21626).
    if not os.getcwd().startswith("/"):
        raise OSError(0, "it is outside the container", path)


def _set_rlimits(limits: tuple[spec.Rlimit, ...]) -> None:
    for limit in limits:
        wished = f"{limit.name} {limit.soft}:{limit.hard}"
        number = getattr(resource, limit.name, None)
        if number is None:
            raise OSError(0, "the kernel has no such limit", wished)
        soft, hard = (resource.RLIM_INFINITY if value >= 2**63 else value for value in (limit.soft, limit.hard))
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError as refusal:  # how Python reports EPERM and EINVAL of setrlimit(2)
            raise OSError(0, f"{refusal}", wished) from None


def _become(process: spec.Process) -> None:
    """Bounding set first, because it takes CAP_SETPCAP; then groups and user; then the other sets (capabilities(7))."""
    for fd in (0, 1, 2):
        if process.uid and stat.S_ISFIFO(os.fstat(fd).st_mode):  # or the user could not open /dev/stdout
            os.fchown(fd, process.uid, -1)
    wished = process.capabilities
    caps.drop_bounding(wished.bounding)
    _prctl(consts.PR_SET_KEEPCAPS, 1)
    os.setgroups(process.additional_gids)
    os.setresgid(process.gid, process.gid, process.gid)
    os.setresuid(process.uid, process.uid, process.uid)
    # The change of user has made it what fs.suid_dumpable says (commit_creds(), kernel/cred.c). While it still has more
    # capabilities than the container no process of that can trace it, and afterwards it is this.
    _prctl(consts.PR_SET_DUMPABLE, 0)
    _prctl(consts.PR_SET_KEEPCAPS, 0)
    caps.become(
        permitted=wished.permitted,
        effective=wished.effective,
        inheritable=wished.inheritable,
        ambient=wished.ambient,
    )
    os.umask(process.umask)


def _prctl(option: int, value: int) -> None:
    processes.prctl(option, value)
