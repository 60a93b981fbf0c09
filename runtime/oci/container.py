"""Containers by OCI configuration, each in a directory: create, start, exec, kill, delete.

`create` leaves a process that has everything but its command: namespaces, root, cgroups, user. Between it and `start`
the caller may add what belongs to the outside, such as a network in /proc/PID/ns/net. Whoever has the directory, as
root, can start it; whoever created it may have ended before (Init.leave). A process that calls `create` or `join` is
the parent that waits: it must have one thread, and must not ignore SIGCHLD.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any, NamedTuple

from runtime.errors import ConfigError, ContainerEnded, ContainerError
from runtime.oci import parent, rootfs, state, sync
from runtime.oci.cgroups import Cgroup, hierarchies
from runtime.oci.child import Plan
from runtime.oci.process import Init
from runtime.oci.spec import parse, parse_process
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


def create(
    directory: str, config: dict[str, Any], *, container_id: str = "", bundle: str = "", stdio: Stdio | None = None,
    root: int | None = None, files: int | None = None,
) -> Init:  # fmt: skip
    """A container of this OCI configuration, with everything done but execve. What is known of it is kept in
    `directory`, which nobody but root may enter and which has no container yet; its name and path are the container's
    id and bundle, unless others are given.

    `root` is its root file system as a descriptor of a mount that is in no namespace (fsmount(2), open_tree(2)), and
    is moved into the container's; root.path is then an empty directory, where it is attached for a moment. The caller
    may close the descriptor at any time.

    `files` is another such mount. A mount of type "file", which is ours and not OCI's, binds the file of the name
    `source` at its top; whoever has the descriptor can still write to them.

    ConfigError: the configuration cannot be run. ContainerError: a step failed; the sentence names it. Nothing is
    left behind in either case.
    """
    wanted = parse(config)
    if files is None and any(mount.type == "file" for mount in wanted.mounts):
        raise ConfigError("mounts: there are no files for a mount of type file")
    cgroup = Cgroup(wanted.cgroups_path) if wanted.cgroups_path else None
    steps = tuple(rootfs.plan(wanted, cgroup.hierarchies if cgroup else hierarchies(), given=root is not None))
    new = [kind for kind, path in wanted.namespaces.items() if path is None]
    opened: list[int] = []
    try:
        joins = []
        for kind, path in wanted.namespaces.items():
            if path is not None:
                opened.append(_open_namespace(kind, path))
                joins.append((opened[-1], _CLONE[kind]))
        known = state.State(
            id=container_id or os.path.basename(directory), status=state.CREATING, bundle=bundle or directory,
            annotations=config.get("annotations") or {}, cgroups_path=wanted.cgroups_path,
            namespaces=tuple(wanted.namespaces),
        )  # fmt: skip
        init: Init | None = None
        state.new(directory, known)  # before there is a cgroup, so that `delete` finds it, whoever dies here
        try:
            with state.listen(directory) as listener:
                plan = Plan(
                    process=wanted.process, config=wanted, cgroup=cgroup, root_steps=steps, root=root, files=files,
                    new=sum(_CLONE[kind] for kind in new if kind not in ("cgroup", "mount")),
                    new_cgroup="cgroup" in new, joins=tuple(joins), stdio=stdio, listener=listener.fileno(),
                )  # fmt: skip
                if cgroup is not None:
                    cgroup.create(wanted.resources)
                init = Init(parent.spawn(plan))
            state.save(directory, known._replace(
                status=state.CREATED, pid=init.pid, start_time=state.start_time(init.pid)
            ))  # fmt: skip
            return init
        except BaseException:
            if init is not None:  # the record of it could not be written
                init.kill()
                init.wait()
                if init.console is not None:
                    os.close(init.console)
            delete(directory)
            raise
    finally:
        for fd in opened:
            os.close(fd)


def start(directory: str) -> None:
    """Have the container's command executed. CommandNotFound, CommandNotExecutable or ContainerError: it has ended
    then, and what `delete` removes is still there."""
    known = state.load(directory)
    try:
        channel = state.connect(directory)
    except ConnectionError:
        raise ContainerError(f"the container {known.id} cannot be started: it is not a created one") from None
    try:
        channel.send(sync.START)
        message = channel.receive()
        if message.kind == sync.STARTING:
            message = channel.receive()
        elif message.kind != sync.FAULT:
            raise ContainerError(f"the container {known.id} cannot be started: somebody else did, or it has ended")
    except BrokenPipeError:
        raise ContainerError(f"the container {known.id} cannot be started: it has ended") from None
    finally:
        channel.close()
    with suppress(OSError):  # it runs whether that can be written or not, and `observe` sees it
        state.save(directory, known._replace(status=state.RUNNING))
    if message.kind == sync.FAULT:
        parent.refuse(message.fields)


def join(directory: str, process: dict[str, Any], *, stdio: Stdio | None = None) -> parent.Birth:
    """One more process in the container, on its way; `process` is an OCI process object. ConfigError, or
    ContainerError, also when the container has ended."""
    wanted = parse_process(process)
    known = state.load(directory)
    pidfd = known.open()
    try:
        return parent.begin(Plan(
            process=wanted, config=None, cgroup=Cgroup(known.cgroups_path) if known.cgroups_path else None,
            root_steps=None, root=None, files=None, new=0, new_cgroup=False,
            joins=((pidfd, sum(_CLONE[kind] for kind in known.namespaces)),), stdio=stdio,
        ))  # fmt: skip
    finally:
        os.close(pidfd)


def exec_process(directory: str, process: dict[str, Any], *, stdio: Stdio | None = None) -> Init:
    """The process of `join` with everything done but execve (Init.start); waits for that. Raises what `join` and
    Birth.advance raise; there is no process then."""
    birth = join(directory, process, stdio=stdio)
    try:
        while (born := birth.advance()) is None:
            pass
        return Init(born)
    finally:
        birth.reap()


def kill(directory: str, signum: int) -> None:
    """Signal the container's first process. ContainerEnded if it has ended: a pid that meanwhile went to another
    process is never signalled."""
    pidfd = state.load(directory).open()
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        raise ContainerEnded("the container's process has ended") from None
    finally:
        os.close(pidfd)


def delete(directory: str) -> bool:
    """Kill what is left of the container in `directory`, and forget it. Done already, or by halves, is fine; any
    process may call it. ContainerError if a process does not end. False where no record says what there is."""
    try:
        known = state.load(directory)
    except ContainerError:
        return False
    if known.cgroups_path:
        cgroup = Cgroup(known.cgroups_path)
        cgroup.kill()
        cgroup.remove()
    elif known.pid:
        try:
            kill(directory, signal.SIGKILL)
        except ContainerEnded:
            pass
    state.forget(directory)
    return True


def _open_namespace(kind: str, path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerError(f"cannot open the {kind} namespace {path}: {error.strerror}") from None
