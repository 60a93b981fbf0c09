"""A container's cgroups: one directory in every hierarchy that this host has mounted, v1, v2 or both (hybrid).

Which file holds a limit follows from the hierarchy that has the controller. The container is in all hierarchies, so
that its cgroup namespace shows nothing of the host's. Killing and waiting for the end use the v2 tree where there is
one, controllers or not: cgroup.kill and cgroup.events work in it all the same.

Processes put themselves in (`enter`), because of the kernel's cost model: a process that writes another's pid makes
it wait for an RCU grace period (6 ms measured), one that writes "0" to v1's tasks file does not, and neither does
one that is born into the v2 directory (kernel/cgroup/cgroup.c, cgroup_procs_write_start and cgroup_css_set_fork).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from runtime.errors import ConfigError, ContainerError
from runtime.oci import device_program, v1, v2
from runtime.oci.resources import Resources
from unionfs.linux import mounts

# A directory that this runtime made above a container's is sticky from its first moment on, so that the last
# container's end can remove it, whoever was killed, and an administrator's own stays.
_MADE_BY_US = stat.S_ISVTX
_MADE_BY_0_1 = "trusted.fuse-aufs.made"  # the mark of version 0.1.0, an extended attribute
_PATIENCE = 10.0  # seconds for killed processes to leave


class Hierarchy(NamedTuple):
    mount_point: str
    version: int
    controllers: tuple[str, ...]  # v1: those it is mounted with, or ("name=systemd",)

    @property
    def name(self) -> str:
        return os.path.basename(self.mount_point)

    def filesystem(self) -> str:
        return "cgroup" if self.version == 1 else "cgroup2"

    def mount_data(self) -> tuple[tuple[str, str | None], ...]:
        """What fsconfig takes to mount it once more."""
        if self.version == 2:
            return ()
        pairs = (controller.partition("=") for controller in self.controllers)
        return tuple((key, value or None) for key, _, value in pairs)


def hierarchies() -> tuple[Hierarchy, ...]:
    """What is mounted here, by mount point; bind mounts of parts and second mounts of the same are left out."""
    found: dict[str, Hierarchy] = {}
    for point in mounts.mountinfo():
        if point.fstype == "cgroup2" and point.root == "/":
            controllers = _read(point.target, "cgroup.controllers").split()
            found.setdefault(point.device, Hierarchy(point.target, 2, tuple(controllers)))
        elif point.fstype == "cgroup" and point.root == "/":
            skipped = ("rw", "ro", "xattr", "clone_children", "cpuset_v2_mode", "noprefix", "favordynmods")
            words = (word for word in point.super_options.split(",") if word not in skipped)
            controllers = [word for word in words if not word.startswith("release_agent=")]
            found.setdefault(point.device, Hierarchy(point.target, 1, tuple(controllers)))
    return tuple(found.values())


class Cgroup:
    """The directories of one container, by path: any process may make this object to act on them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.hierarchies = hierarchies()
        self._unified = next((h for h in self.hierarchies if h.version == 2), None)

    def _directory(self, hierarchy: Hierarchy) -> str:
        return hierarchy.mount_point + self.path

    def create(self, resources: Resources) -> None:
        """Make the directories and write the limits. ContainerError if they exist with processes in them, ConfigError
        if a limit has no controller here or is refused; what was made is removed again."""
        if self.pids():
            raise ContainerError(f"the cgroup {self.path} is in use by another container")
        try:
            for hierarchy in self.hierarchies:
                _make(hierarchy, self.path)
            self._limit(resources)
        except BaseException as error:
            self.remove()
            if isinstance(error, OSError):
                raise ContainerError(f"cannot make the cgroup {error.filename}: {error.strerror}") from None
            raise

    def _limit(self, resources: Resources) -> None:
        by_controller = {name: h for h in self.hierarchies for name in h.controllers}
        plans = {1: list(v1.settings(resources)), 2: list(v2.settings(resources))}
        for version, settings in plans.items():
            for setting in settings:
                hierarchy = by_controller.get(setting.controller)
                if hierarchy is not None and hierarchy.version == version:
                    _write_limit(self._directory(hierarchy), setting)
                elif hierarchy is None and setting.controller != "devices":
                    raise ConfigError(
                        f"linux.resources: {setting.file} {setting.value} cannot be set: "
                        f"no {setting.controller} controller is mounted"
                    )
        if "devices" not in by_controller and resources.devices:
            self._limit_devices(resources)

    def _limit_devices(self, resources: Resources) -> None:
        if self._unified is None:
            raise ConfigError("linux.resources.devices: no devices controller and no cgroup v2 is mounted")
        directory = os.open(self._directory(self._unified), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            device_program.attach(directory, resources.devices)
        finally:
            os.close(directory)

    def open_unified(self) -> int | None:
        """A descriptor of the v2 directory, for a process to be born in; None where there is no v2."""
        if self._unified is None:
            return None
        return os.open(self._directory(self._unified), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def enter(self) -> None:
        """Move the calling thread, which is its process's only one, into the v1 directories."""
        for hierarchy in self.hierarchies:
            if hierarchy.version == 1:
                _write(self._directory(hierarchy), "tasks", "0")

    def pids(self) -> list[int]:
        """The processes in it, in this process's pid namespace (0: not in it). Empty if it does not exist."""
        found: set[int] = set()
        for hierarchy in (self._unified,) if self._unified else self.hierarchies:
            for directory, _, _ in os.walk(self._directory(hierarchy), onerror=_raise_unless_missing):
                try:
                    found.update(int(pid) for pid in _read(directory, "cgroup.procs").split())
                except FileNotFoundError:
                    pass  # a sub-cgroup was removed meanwhile
        return sorted(found)

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed because of the memory limit."""
        for hierarchy in self.hierarchies:
            if "memory" in hierarchy.controllers:
                file = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
                try:
                    lines = _read(self._directory(hierarchy), file).splitlines()
                except FileNotFoundError:
                    return 0
                return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        return 0

    def kill(self) -> None:
        """Kill every process in it and return when they are gone. ContainerError if they do not go in time."""
        deadline = time.monotonic() + _PATIENCE
        unified = self._directory(self._unified) if self._unified else None
        if unified is not None:
            try:
                _write(unified, "cgroup.kill", "1")
                self.freeze(False)  # what v1's freezer holds does not even die
                _await_empty(unified, deadline)
            except FileNotFoundError:  # no such cgroup, or a kernel before 5.14
                pass
            else:
                return
        while pids := self.pids():
            self.freeze(True)  # or a fork would outrun the loop
            for pid in pids:
                if pid:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            self.freeze(False)
            if time.monotonic() > deadline:
                raise ContainerError(f"processes in the cgroup {self.path} do not end: {pids}")
            time.sleep(0.001)

    def freeze(self, frozen: bool) -> None:
        """Stop every process in it where it is, which takes a moment (`is_frozen`), or let them go on."""
        for hierarchy in self.hierarchies:
            try:
                if "freezer" in hierarchy.controllers:
                    _write(self._directory(hierarchy), "freezer.state", "FROZEN" if frozen else "THAWED")
                elif hierarchy.version == 2:
                    _write(self._directory(hierarchy), "cgroup.freeze", str(int(frozen)))
            except FileNotFoundError:
                pass

    def is_frozen(self) -> bool:
        """Whether all processes in it have stopped, as one hierarchy says: a process that one has stopped never
        comes to where another would count it. True where nothing can stop them, or there is no such cgroup."""
        said = []
        for hierarchy in self.hierarchies:
            directory = self._directory(hierarchy)
            with suppress(FileNotFoundError):
                if "freezer" in hierarchy.controllers:
                    said.append(_read(directory, "freezer.state").strip() == "FROZEN")
                elif hierarchy.version == 2:
                    said.append("frozen 1" in _read(directory, "cgroup.events"))
        return any(said) or not said

    def remove(self) -> None:
        """Remove the directories, sub-cgroups first, and those above that this runtime made and nobody uses."""
        deadline = time.monotonic() + _PATIENCE
        for hierarchy in self.hierarchies:
            top = self._directory(hierarchy)
            for directory, _, _ in os.walk(top, topdown=False):
                _remove(directory, deadline)
            above = os.path.dirname(top)
            while above != hierarchy.mount_point and _remove_if_ours(above):
                above = os.path.dirname(above)


def _make(hierarchy: Hierarchy, path: str) -> None:
    """Other processes make, fill and remove the directories above at the same time: each is taken as it is found."""
    deadline = time.monotonic() + _PATIENCE
    missing = ""
    while time.monotonic() < deadline:
        try:
            directory = hierarchy.mount_point
            *parents, own = path.strip("/").split("/")
            for part in parents:
                directory = _make_below(hierarchy, directory, part, 0o755 | _MADE_BY_US)
            _make_below(hierarchy, directory, own, 0o755)
            return
        except FileNotFoundError as error:  # the last other container has just ended, and taken one above along
            missing = error.filename
        time.sleep(0.001)
    raise ContainerError(f"the cgroup {path} cannot be made: {missing} is missing")


def _make_below(hierarchy: Hierarchy, above: str, name: str, mode: int) -> str:
    directory = f"{above}/{name}"
    if hierarchy.version == 2:
        _delegate(above)
    with _gone_is_missing(directory), suppress(FileExistsError):
        os.mkdir(directory, mode)
    if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
        # Empty in a new v1 cgroup, which nobody could enter. Whoever made it may not have filled it yet, or never will.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not _read(directory, file).strip():
                _write(directory, file, _read(above, file).strip())
    return directory


def _delegate(directory: str) -> None:
    """Let the directories below have all of this one's controllers."""
    for controller in _read(directory, "cgroup.controllers").split():
        try:
            _write(directory, "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            # EBUSY: processes live in this very directory (cgroups(7), no internal processes); a limit that needs
            # the controller will name it. Others: a controller that is not to be had here.
            if error.errno not in (errno.EBUSY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
                raise


def _write_limit(directory: str, setting: v1.Setting) -> None:
    try:
        _write(directory, setting.file, setting.value)
    except OSError as error:
        if setting.file == "memory.memsw.limit_in_bytes" and error.errno == errno.ENOENT:
            return  # a kernel that does not account for swap
        raise ConfigError(
            f"linux.resources: the kernel refuses {setting.file} {setting.value}: {error.strerror}"
        ) from None


def _await_empty(unified: str, deadline: float) -> None:
    """Until cgroup.events says that no live process is left in it or below it. The file wakes pollers (cgroups(7))."""
    path = f"{unified}/cgroup.events"
    with _gone_is_missing(path), open(path, "rb", buffering=0) as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while b"populated 0" not in os.pread(events.fileno(), 4096, 0):
            left = deadline - time.monotonic()
            if left <= 0:
                raise ContainerError(f"processes in the cgroup {unified} do not end")
            poll.poll(left * 1000)


def _remove(directory: str, deadline: float) -> None:
    while True:
        try:
            with _gone_is_missing(directory):
                os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # A process that was just killed still counts until it is a zombie, and v1 has no event for that.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise ContainerError(f"the cgroup {directory} cannot be removed: {error.strerror}") from None
        time.sleep(0.001)


def _remove_if_ours(directory: str) -> bool:
    try:
        ours = bool(os.stat(directory).st_mode & _MADE_BY_US) or _MADE_BY_0_1 in os.listxattr(directory)
        if ours:
            os.rmdir(directory)
    except OSError:  # in use by another container (EBUSY), or already removed
        return False
    return ours


def _raise_unless_missing(error: OSError) -> None:
    """What cannot be listed is not empty."""
    with suppress(FileNotFoundError), _gone_is_missing(error.filename):
        raise error


def _read(directory: str, file: str) -> str:
    path = f"{directory}/{file}"
    with _gone_is_missing(path), open(path, encoding="ascii") as stream:
        return stream.read()


def _write(directory: str, file: str, value: str) -> None:
    path = f"{directory}/{file}"
    with _gone_is_missing(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


@contextmanager
def _gone_is_missing(path: str) -> Iterator[None]:
    """FileNotFoundError also for ENODEV, which is what the kernel says of a cgroup that goes at this very moment
    (fs/kernfs, kernfs_get_active)."""
    try:
        yield
    except OSError as error:
        missing = error.errno == errno.ENODEV
        number = errno.ENOENT if missing else error.errno
        raise OSError(number, os.strerror(number or 0), path) from None
