"""A container's root directory: decided as a list of steps by `plan`, then applied in one loop, in the child.

Every step is a value: `describe()` is the half sentence that an error begins with, `apply` does it. The first ones
(newroot.py) leave nothing but the root in a new mount namespace; the others do their work in there, with nothing of
the host in sight. Mounts are made detached (fsmount(2), open_tree(2)), finished, and only then attached to a
descriptor of their place, so nothing in the image is ever named by a path that it could bend.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from runtime.oci import defaults, options, spec
from runtime.oci.cgroups import Hierarchy
from runtime.oci.inroot import Root
from runtime.oci.newroot import (
    AttachRoot,
    BindRoot,
    NewNamespace,
    OpenFiles,
    OpenSource,
    Pivot,
    RootfsStep,
    Work,
)
from unionfs.linux import consts, mounts


def plan(config: spec.Spec, hierarchies: tuple[Hierarchy, ...], *, given: bool = False) -> list[RootfsStep]:
    """The steps in order. `hierarchies` are those that the container is in; the root file system is that of
    root.path, or one that is `given` to the Work as a descriptor."""
    steps: list[RootfsStep] = [
        OpenSource(mount.source, mount.destination, options.sort(mount.options))
        for mount in config.mounts if mount.type == "bind"
    ]  # fmt: skip
    steps.append(NewNamespace(config.propagation))
    steps.append(AttachRoot(config.rootfs, config.propagation) if given else BindRoot(config.rootfs))
    if names := tuple(mount.source for mount in config.mounts if mount.type == "file"):
        steps.append(OpenFiles(names))
    steps.append(Pivot())
    for mount in config.mounts:
        sorted_options = options.sort(mount.options)
        if mount.type == "bind":
            steps.append(Bind(mount.source, mount.destination))
        elif mount.type == "file":
            steps.append(BindFile(mount.source, mount.destination))
        elif mount.type == "cgroup":
            steps.append(MountCgroups(mount.destination, hierarchies, sorted_options))
        else:
            steps.append(MountFilesystem(mount.type, mount.source, mount.destination, sorted_options))
    steps.append(MakeDevices(_devices(config)))
    steps.extend(Symlink(path, target) for path, target in defaults.SYMLINKS)
    steps.append(WorkingDirectory(config.process.cwd))
    steps.extend(MakeReadonly(path) for path in config.readonly_paths)
    steps.extend(Mask(path) for path in config.masked_paths)
    if config.readonly:
        steps.append(ReadonlyRoot())
    return steps


def _devices(config: spec.Spec) -> tuple[spec.Device, ...]:
    wished = {device.path: device for device in config.devices}
    standard = (spec.Device(path, "c", major, minor, 0o666, 0, 0) for path, major, minor in defaults.DEVICES)
    return (*(device for device in standard if device.path not in wished), *wished.values())


class MountFilesystem(NamedTuple):
    type: str
    source: str
    destination: str
    options: options.MountOptions

    def describe(self) -> str:
        return f"mount {self.type} on {self.destination}"

    def apply(self, work: Work) -> None:
        mount_fd = mounts.new_mount(self.type, self.source, self.options.data, self.options.attr_set)
        try:
            _attach(work.root, mount_fd, self.destination)
            if self.options.propagation:
                mounts.mount_setattr(mount_fd, b"", consts.AT_EMPTY_PATH, propagation=self.options.propagation)
        finally:
            os.close(mount_fd)


class Bind(NamedTuple):
    """A directory or file of the host: the next of the sources that were opened while the host was in sight."""

    source: str
    destination: str

    def describe(self) -> str:
        return f"bind {self.source} on {self.destination}"

    def apply(self, work: Work) -> None:
        mount_fd = work.sources.popleft()
        try:
            _attach(work.root, mount_fd, self.destination)
        finally:
            os.close(mount_fd)


class BindFile(NamedTuple):
    """One of the files that were given."""

    name: str
    destination: str

    def describe(self) -> str:
        return f"bind the file {self.name} on {self.destination}"

    def apply(self, work: Work) -> None:
        mount_fd = work.files.pop(self.name)
        try:
            _attach(work.root, mount_fd, self.destination)
        finally:
            os.close(mount_fd)


class MountCgroups(NamedTuple):
    """What the container sees of its own cgroups: one unified tree, or a directory a hierarchy as on this host."""

    destination: str
    hierarchies: tuple[Hierarchy, ...]
    options: options.MountOptions

    def describe(self) -> str:
        return f"mount the cgroups on {self.destination}"

    def apply(self, work: Work) -> None:
        if [hierarchy.version for hierarchy in self.hierarchies] == [2]:
            MountFilesystem("cgroup2", "cgroup", self.destination, self.options._replace(data=())).apply(work)
            return
        # Mode and size are the outer tmpfs's; it turns read-only only when the directories are there.
        outer = (("mode", "755"), ("size", "64k"))
        tmpfs_fd = mounts.new_mount("tmpfs", "tmpfs", outer, self.options.attr_set & ~consts.MOUNT_ATTR_RDONLY)
        try:
            for hierarchy in self.hierarchies:
                os.mkdir(hierarchy.name, dir_fd=tmpfs_fd)
                # Programs look for cpu where the hierarchy of both is mounted as cpu,cpuacct.
                for controller in hierarchy.controllers if hierarchy.version == 1 else ():
                    if controller != hierarchy.name and "=" not in controller:
                        os.symlink(hierarchy.name, controller, dir_fd=tmpfs_fd)
            _attach(work.root, tmpfs_fd, self.destination)
            for hierarchy in self.hierarchies:
                step_options = self.options._replace(data=hierarchy.mount_data())
                kind, place = hierarchy.filesystem(), f"{self.destination}/{hierarchy.name}"
                MountFilesystem(kind, "cgroup", place, step_options).apply(work)
            mounts.mount_setattr(tmpfs_fd, b"", consts.AT_EMPTY_PATH, attr_set=self.options.attr_set)
        finally:
            os.close(tmpfs_fd)


class MakeDevices(NamedTuple):
    devices: tuple[spec.Device, ...]

    def describe(self) -> str:
        return "make the device nodes"

    def apply(self, work: Work) -> None:
        for device in self.devices:
            above, _, name = device.path.rpartition("/")
            parent = work.root.directory(above or "/")
            try:
                _make_device(parent, name, device)
                if device.path == "/dev/null":
                    work.null_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
            finally:
                os.close(parent)


def _make_device(parent: int, name: str, device: spec.Device) -> None:
    kind = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[device.kind]
    number = os.makedev(device.major, device.minor) if device.kind != "p" else 0
    try:
        os.mknod(name, kind | device.mode, number, dir_fd=parent)
    except FileExistsError:
        # An image without a tmpfs on /dev may bring the node along. Anything else of that name is a trap.
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if (stat.S_IFMT(there.st_mode), there.st_rdev) != (kind, number):
            raise OSError(errno.EEXIST, "something else has its name", device.path) from None
    else:
        os.chown(name, device.uid, device.gid, dir_fd=parent, follow_symlinks=False)


class Symlink(NamedTuple):
    path: str
    target: str

    def describe(self) -> str:
        return f"link {self.path} to {self.target}"

    def apply(self, work: Work) -> None:
        above, _, name = self.path.rpartition("/")
        parent = work.root.directory(above)
        try:
            os.symlink(self.target, name, dir_fd=parent)
        except FileExistsError:
            pass  # a /dev of the image's own
        finally:
            os.close(parent)


class WorkingDirectory(NamedTuple):
    path: str

    def describe(self) -> str:
        return f"make the working directory {self.path}"

    def apply(self, work: Work) -> None:
        os.close(work.root.directory(self.path))


class MakeReadonly(NamedTuple):
    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def apply(self, work: Work) -> None:
        try:
            target = work.root.open(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            flags = consts.AT_EMPTY_PATH | consts.AT_RECURSIVE
            mount_fd = mounts.open_tree(target, b"", flags | consts.OPEN_TREE_CLONE)
            try:
                mounts.mount_setattr(mount_fd, b"", flags, attr_set=consts.MOUNT_ATTR_RDONLY)
                work.root.attach(mount_fd, self.path, target)
            finally:
                os.close(mount_fd)
        finally:
            os.close(target)


class Mask(NamedTuple):
    """Cover a directory with an empty read-only one, anything else with the null device.

    The null device is the node that MakeDevices made, by descriptor, looked at once more: by its path it could be a
    link to what was to be hidden (CVE-2025-31133). It is the container's own node: its mode changes nobody else's.
    """

    path: str

    def describe(self) -> str:
        return f"mask {self.path}"

    def apply(self, work: Work) -> None:
        try:
            target = work.root.open(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            mount_fd = self._empty_directory() if stat.S_ISDIR(os.fstat(target).st_mode) else self._null(work.null_fd)
            try:
                work.root.attach(mount_fd, self.path, target)
            finally:
                os.close(mount_fd)
        finally:
            os.close(target)

    def _empty_directory(self) -> int:
        data = (("mode", "555"), ("nr_inodes", "1"))
        attributes = consts.MOUNT_ATTR_RDONLY | consts.MOUNT_ATTR_NOSUID | consts.MOUNT_ATTR_NODEV
        return mounts.new_mount("tmpfs", "tmpfs", data, attributes | consts.MOUNT_ATTR_NOEXEC)

    def _null(self, null_fd: int) -> int:
        status = os.fstat(null_fd)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
            raise OSError(errno.ENODEV, "the container's /dev/null is not the null device", self.path)
        return mounts.open_tree(null_fd, b"", consts.OPEN_TREE_CLONE | consts.AT_EMPTY_PATH)


class ReadonlyRoot(NamedTuple):
    def describe(self) -> str:
        return "make the root read-only"

    def apply(self, work: Work) -> None:
        mounts.mount_setattr(work.root.fd, b"", consts.AT_EMPTY_PATH, attr_set=consts.MOUNT_ATTR_RDONLY)


def _attach(root: Root, mount_fd: int, destination: str) -> None:
    """Attach at a place of the mount's own kind, directory or file, made if it is missing."""
    make = root.directory if stat.S_ISDIR(os.fstat(mount_fd).st_mode) else root.file
    target = make(destination)
    try:
        root.attach(mount_fd, destination, target)
    finally:
        os.close(target)
