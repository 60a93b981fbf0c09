"""Containers by OCI configuration: create, start, wait, exec, kill, delete.

`create` leaves a process that has everything but its command: namespaces, root, cgroups, user. Between it and
`Init.start` the caller may add what belongs to the outside, such as a network in /proc/PID/ns/net. The calling
process is the parent that waits; it must have one thread, and must not ignore SIGCHLD.
"""

from __future__ import annotations

import os
import select
import signal
from typing import Any, NamedTuple

from runtime.errors import ConfigError, ContainerError
from runtime.oci import parent, rootfs, sync
from runtime.oci.cgroups import Cgroup, hierarchies
from runtime.oci.child import Birth
from runtime.oci.spec import cgroups_path, parse, parse_process
from unionfs.linux import consts

_CLONE = {
    "mount": consts.CLONE_NEWNS,
    "pid": consts.CLONE_NEWPID,
    "network": consts.CLONE_NEWNET,
    "uts": consts.CLONE_NEWUTS,
    "ipc": consts.CLONE_NEWIPC,
    "cgroup": consts.CLONE_NEWCGROUP,
}


class Stdio(NamedTuple):
    """Descriptors of the caller's, duplicated for the container. With process.terminal they are not used."""

    stdin: int
    stdout: int
    stderr: int


class Init:
    """A process of a container, child of this process: the first one, or one that exec_process added.

    `pid` is the caller's number for it, `pidfd` becomes readable when it ends, `console` is the master of its pty
    or None, `root` of a first process a look at the container's root (newroot.look) or None; the caller closes the
    console, `wait` the rest.
    """

    # Those of this process that nobody has collected yet, by pidfd.
    _alive: dict[int, Init] = {}

    def __init__(self, child: parent.Child, hangup: int | None = None) -> None:
        self.pid = child.pid
        self.pidfd = child.pidfd
        self.console = child.console
        self.root = child.root
        self._channel = child.channel
        self._hangup = hangup
        self._code: int | None = None
        self._alive[self.pidfd] = self

    def start(self) -> None:
        """Execute the command. CommandNotFound, CommandNotExecutable or ContainerError: the process is gone then,
        and what `delete` removes is still there."""
        try:
            self._channel.send(sync.START)
            message = parent.receive(self._channel, self._hangup)
        except BrokenPipeError:
            return  # it was killed before it was started: wait has the code
        except ContainerError:
            self.kill()
            self.wait()
            raise
        finally:
            self._channel.close()
        if message.kind == sync.FAULT:
            self.wait()
            parent.refuse(message.fields)

    def wait(self) -> int:
        """The exit code as docker gives it, when the process has ended: its code, or 128 and its signal.

        Added processes of this caller's that end meanwhile are collected too. The first process of a pid namespace
        does not end before its namespace is empty (kernel/pid_namespace.c, zap_pid_ns_processes), and a zombie that
        waits for this very caller would keep it for ever.
        """
        while self._code is None:
            poll = select.poll()
            for pidfd in self._alive:
                poll.register(pidfd, select.POLLIN)
            for pidfd, _ in poll.poll():
                self._alive[pidfd]._collect()
        return self._code

    def _collect(self) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._code = 128 - status if status < 0 else status
        del self._alive[self.pidfd]
        self._channel.close()
        os.close(self.pidfd)
        if self.root is not None:
            os.close(self.root)
            self.root = None

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal. After `wait` it does nothing."""
        if self._code is None:
            signal.pidfd_send_signal(self.pidfd, signum)


def create(
    config: dict[str, Any], *, stdio: Stdio | None = None, root: int | None = None, files: int | None = None
) -> Init:
    """A container of this OCI configuration, with everything done but execve.

    `root` is its root file system as a descriptor of a mount that is in no namespace (fsmount(2), open_tree(2)), and
    is moved into the container's; root.path is then an empty directory, where it is attached for a moment. The caller
    closes the descriptor, when it likes.

    `files` is another such mount. A mount of type "file", which is ours and not OCI's, binds the file of the name
    `source` at its top; who has the descriptor can still write to them.

    ConfigError: the configuration cannot be run. ContainerError: a step failed; the sentence names it. Nothing is
    left behind in either case.
    """
    wanted = parse(config)
    if files is None and any(mount.type == "file" for mount in wanted.mounts):
        raise ConfigError("mounts: there are no files for a mount of type file")
    cgroup = Cgroup(wanted.cgroups_path) if wanted.cgroups_path else None
    steps = tuple(rootfs.plan(wanted, cgroup.hierarchies if cgroup else hierarchies(), given=root is not None))
    new = [kind for kind, path in wanted.namespaces.items() if path is None]
    joins: list[tuple[int, int]] = []
    try:
        for kind, path in wanted.namespaces.items():
            if path is not None:
                joins.append((_open_namespace(kind, path), _CLONE[kind]))
        birth = Birth(
            process=wanted.process,
            config=wanted,
            cgroup=cgroup,
            root_steps=steps,
            root=root,
            files=files,
            new=sum(_CLONE[kind] for kind in new if kind not in ("cgroup", "mount")),
            new_cgroup="cgroup" in new,
            joins=tuple(joins),
            stdio=stdio,
        )
        if cgroup is not None:
            cgroup.create(wanted.resources)
        try:
            return Init(parent.spawn(birth))
        except BaseException:
            if cgroup is not None:
                cgroup.kill()
                cgroup.remove()
            raise
    finally:
        for fd, _ in joins:
            os.close(fd)


def exec_process(
    pid: int, process: dict[str, Any], *, spec: dict[str, Any], stdio: Stdio | None = None, hangup: int | None = None
) -> Init:
    """One more process in the running container of configuration `spec`, whose first process is `pid`.

    `process` is an OCI process object. Until the command runs it is given up when the descriptor `hangup` becomes
    readable. ConfigError, or ContainerError, also when the container has ended.
    """
    wanted = parse(spec)
    cgroup = Cgroup(wanted.cgroups_path) if wanted.cgroups_path else None
    pidfd = _open_member(pid, cgroup)
    try:
        flags = sum(_CLONE[kind] for kind in wanted.namespaces)
        birth = Birth(
            process=parse_process(process),
            config=wanted,
            cgroup=cgroup,
            root_steps=None,
            root=None,
            files=None,
            new=0,
            new_cgroup=False,
            joins=((pidfd, flags),),
            stdio=stdio,
        )
        return Init(parent.spawn(birth, hangup), hangup)
    finally:
        os.close(pidfd)


def kill(pid: int, signum: int, *, spec: dict[str, Any]) -> None:
    """Signal the first process of the container of configuration `spec`, for callers that are not its parent.

    ContainerError if it has ended: a number that meanwhile went to another process is never signalled.
    """
    path = cgroups_path(spec)
    pidfd = _open_member(pid, Cgroup(path) if path else None)
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        raise ContainerError(f"the container's process {pid} has ended") from None
    finally:
        os.close(pidfd)


def delete(spec: dict[str, Any]) -> None:
    """Kill what is left in the container's cgroup and remove it. Done already is fine. Any process may call it."""
    path = cgroups_path(spec)
    if path:
        cgroup = Cgroup(path)
        cgroup.kill()
        cgroup.remove()


def _open_namespace(kind: str, path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerError(f"cannot open the {kind} namespace {path}: {error.strerror}") from None


def _open_member(pid: int, cgroup: Cgroup | None) -> int:
    """A pidfd of `pid`, which is a live process of the cgroup: it was one after the pidfd held on to it."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        raise ContainerError(f"the container's process {pid} has ended") from None
    if cgroup is not None and pid not in cgroup.pids():
        os.close(pidfd)
        raise ContainerError(f"the container's process {pid} has ended")
    return pidfd
