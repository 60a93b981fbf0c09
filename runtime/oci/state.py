"""state.json: what is known of a container to whoever has its directory (runtime-spec, runtime.md, "State").

    creating ──▶ created ──▶ running ──▶ stopped

Whether a container has stopped is never recorded: its process tells, which nobody may be waiting for. That process is
known by its pid, by when it started, and by its cgroup: pids are reused, and what is signalled here is signalled by
root.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from runtime.errors import ContainerEnded, ContainerError, sentence
from runtime.oci import sync
from runtime.oci.cgroups import Cgroup

VERSION = "1.2.0"  # of the runtime-spec
CREATING, CREATED, RUNNING, STOPPED = "creating", "created", "running", "stopped"

# How the kernel says that a process has ended: its pid is nobody's, or is a thread's by now (pidfd_open(2)), or
# /proc/PID has gone.
_GONE = (errno.ESRCH, errno.EINVAL, errno.ENOENT)

_RECORD = "state.json"
# Whoever connects to it and says START lets the process go on (sync.py). It is in no mount namespace but the host's, so
# nothing in the container reaches it by name, and no process but the one that waits has it open.
_START = "start.sock"


class State(NamedTuple):
    """One moment of a container."""

    id: str
    status: str
    bundle: str
    annotations: dict[str, str] = {}
    pid: int = 0  # of its first process, in the pid namespace of whoever created it; 0 while it is being made
    start_time: int = 0  # of that process, in clock ticks since the machine started (proc(5), /proc/PID/stat)
    cgroups_path: str | None = None
    namespaces: tuple[str, ...] = ()  # the kinds that a process has to join to be in it

    def document(self) -> dict[str, Any]:
        """As the runtime-spec has it, and what is ours after that."""
        return {
            "ociVersion": VERSION, "id": self.id, "status": self.status, "pid": self.pid, "bundle": self.bundle,
            "annotations": self.annotations, "startTime": self.start_time, "cgroupsPath": self.cgroups_path,
            "namespaces": self.namespaces,
        }  # fmt: skip

    def open(self) -> int:
        """A pidfd of its first process, which lives. ContainerEnded, or ContainerError when it cannot be looked at."""
        try:
            pidfd = os.pidfd_open(self.pid)
            try:
                # It holds on to the process, so that whatever is found of the pid from here on is about this one.
                if start_time(self.pid) == self.start_time and self._is_member():
                    return pidfd
            except BaseException:
                os.close(pidfd)
                raise
            os.close(pidfd)
        except OSError as error:
            if error.errno not in _GONE:
                raise ContainerError(f"cannot look at the container's process {self.pid}: {sentence(error)}") from error
        raise ContainerEnded(f"the container's process {self.pid} has ended")

    def _is_member(self) -> bool:
        return self.cgroups_path is None or self.pid in Cgroup(self.cgroups_path).pids()


def new(directory: str, state: State) -> None:
    """Record a container of which there is nothing yet. ContainerError when there is one in that directory."""
    if os.path.exists(f"{directory}/{_RECORD}"):
        raise ContainerError(f"there is a container in {directory} already")
    save(directory, state)


def save(directory: str, state: State) -> None:
    """Replace the record whole: a reader sees the old one or the new one."""
    path = f"{directory}/{_RECORD}"
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(state.document(), file)
    os.rename(f"{path}.new", path)


def load(directory: str) -> State:
    """As it was recorded. ContainerError where there is no container, or a record of another version's."""
    try:
        with open(f"{directory}/{_RECORD}", encoding="utf-8") as file:
            found = json.load(file)
        return State(
            found["id"], found["status"], found["bundle"], found["annotations"], int(found["pid"]),
            int(found["startTime"]), found["cgroupsPath"], tuple(found["namespaces"]),
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        raise ContainerError(f"there is no container in {directory}") from None
    except (ValueError, LookupError, TypeError):
        raise ContainerError(f"{directory}/{_RECORD} is not a record of a container") from None


def observe(directory: str) -> State:
    """As it is now: `stopped` when its process has ended, `running` even if its starter did not live to say so. Raises
    ContainerError also when that cannot be seen."""
    found = load(directory)
    if found.status == CREATING:
        return found
    try:
        os.close(found.open())
    except ContainerEnded:
        return found._replace(status=STOPPED)
    if found.status == CREATED:
        try:
            connect(directory).close()  # a mere look says nothing, and the process waits on
        except ConnectionError:
            return found._replace(status=RUNNING)
    return found


def forget(directory: str) -> None:
    """Remove what is recorded here, whether it is all there or not."""
    for name in (_START, _RECORD):
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")


def listen(directory: str) -> socket.socket:
    """The socket on which the first process is to wait for its start."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(directory) as path:
            listener.bind(f"{path}/{_START}")
        os.chmod(f"{directory}/{_START}", 0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(directory: str) -> sync.Channel:
    """A channel to the process that waits for its start. ConnectionError when none does any more."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(directory) as path:
            end.connect(f"{path}/{_START}")
    except FileNotFoundError:
        end.close()
        raise ConnectionRefusedError from None
    except BaseException:
        end.close()
        raise
    return sync.Channel(end)


@contextmanager
def _short(directory: str) -> Iterator[str]:
    """A short name for `directory`: sun_path (unix(7)) holds 107 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since the machine did. OSError when it is gone."""
    with open(f"/proc/{pid}/stat", "rb") as fields:
        return int(fields.read().rpartition(b")")[2].split()[19])  # the 22nd of proc(5)
