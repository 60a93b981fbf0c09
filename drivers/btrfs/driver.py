"""The Snapshotter of subvolumes; drivers/btrfs/__init__.py says how it hangs together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from drivers.api import Kind, Mount, Probe, Usage
from drivers.btrfs import image, qgroups, subvolumes
from drivers.disk import trees
from drivers.disk.copytree import copy_tree
from drivers.disk.ownership import own_directory
from drivers.disk.sizes import parse_size, show_size
from drivers.disk.trees import DIRECTORY
from drivers.errors import DriverError, Unavailable
from drivers.graph.directories import DirectorySnapshotter, bind
from drivers.graph.snapshotter import NewSnapshot
from drivers.graph.transaction import Record
from unionfs.linux import consts, mounts
from unionfs.linux.files import fd_path, renameat2

LOOPSIZE = "btrfs.loopsize"
OPTIONS = {
    LOOPSIZE: "the size of the file with the file system, where the root is not on btrfs; a larger one than it has "
    "grows it (100G, or what room there is)"
}

_LAYER, _SETTLED = "fs", "settled"


class Driver(DirectorySnapshotter):
    NAME = "btrfs"

    def __init__(self, root: str, options: Mapping[str, str]) -> None:
        self._image: image.Image | None = None
        self._destroyed: list[int] = []  # appended to by any thread
        self._size = parse_size(options[LOOPSIZE], LOOPSIZE) if LOOPSIZE in options else 0
        self._needs_image = _needs_image(own_directory(root))
        if LOOPSIZE in options and not self._needs_image:
            raise Unavailable(f"{LOOPSIZE} is for a root that is not on btrfs, and {root} is: leave it out")
        if LOOPSIZE in options:
            image.check_wanted(root, self._size)
        try:
            super().__init__(root, options, delete=self._delete)
        except BaseException:
            if self._image:
                self._image.leave()
            raise

    def _has_content(self) -> bool:
        return os.path.lexists(os.path.join(self._root, image.NAME)) or super()._has_content()

    def _place(self) -> int | None:
        with self._store.read() as transaction:
            noted = transaction.mark(image.NAME) is not None
        if not (self._needs_image or noted):
            return None
        self._image = image.Image(self._root, self._store, self._size)
        return self._image.fd

    def _is_layer(self, path: str) -> bool:
        return super()._is_layer(path) and os.stat(path).st_ino == subvolumes.FIRST_FREE

    def _begin(self, directory: str, new: NewSnapshot, parents: Sequence[str]) -> None:
        fd = os.open(directory, DIRECTORY)
        try:
            if parents and new.kind is Kind.VIEW:
                os.mkdir(_LAYER, dir_fd=fd)
            elif parents:
                parent_fd = os.open(parents[0], DIRECTORY)
                try:
                    subvolumes.set_read_only(parent_fd, True)  # whoever committed it may have been killed before that
                    subvolumes.snapshot(parent_fd, fd, _LAYER)
                finally:
                    os.close(parent_fd)
            else:
                subvolumes.create(fd, _LAYER)
                os.chmod(_LAYER, 0o755, dir_fd=fd)  # whatever the umask is
            if new.quota:
                self._limit(fd, new.quota)
            subvolumes.sync(fd)
        finally:
            os.close(fd)

    def _tree(self, directory: str, kind: Kind, parents: Sequence[str], *, volatile: bool) -> list[Mount]:
        layer = parents[0] if kind is Kind.VIEW and parents else os.path.join(directory, _LAYER)
        if self._image is None:
            return bind(layer, kind)
        subvolume = "subvol=/" + os.path.relpath(layer, self._layout.path)
        return [Mount("btrfs", self._image.device, (subvolume, "ro" if kind is Kind.VIEW else "rw"))]

    def _check_quota(self, quota: int) -> None:
        """Every btrfs has quotas."""

    def _limit(self, directory_fd: int, quota: int) -> None:
        layer_fd = os.open(_LAYER, DIRECTORY, dir_fd=directory_fd)
        try:
            qgroups.limit(layer_fd, subvolumes.number(layer_fd), quota, is_ours=self._image is not None)
        finally:
            os.close(layer_fd)

    def _measure(self, record: Record) -> Usage:
        with self._store.read() as transaction:
            parents = self._layers(transaction.ancestors(record))
        layer = self._layer(record)
        fd = os.open(layer, DIRECTORY)
        try:
            if not subvolumes.is_root(fd):
                return trees.disk_usage(layer)
            since = 0
            if parents:
                # Whatever is newer than the parent's last change is the child's.
                parent_fd = os.open(parents[0], DIRECTORY)
                try:
                    since = subvolumes.last_change(parent_fd)
                finally:
                    os.close(parent_fd)
            subvolumes.sync(fd)
            return subvolumes.measure(fd, since)
        finally:
            os.close(fd)

    def _settle(self, record: Record) -> None:
        """Put a plain tree in the place of one with subvolumes in it: a snapshot of it would have empty directories.

        Made beside it and exchanged with it in one step. Data is shared by reflink.
        """
        directory_fd = os.open(self._layout.join(record.id), DIRECTORY)
        try:
            self._destroy(directory_fd, _SETTLED)  # left by somebody who was killed in here
            layer_fd = os.open(_LAYER, DIRECTORY, dir_fd=directory_fd)
            try:
                nested = subvolumes.children(layer_fd, subvolumes.number(layer_fd))
                if not nested:
                    return
                subvolumes.snapshot(layer_fd, directory_fd, _SETTLED)
                settled_fd = os.open(_SETTLED, DIRECTORY, dir_fd=directory_fd)
                try:
                    for reference in nested:
                        _make_plain(layer_fd, settled_fd, reference)
                finally:
                    os.close(settled_fd)
            finally:
                os.close(layer_fd)
            subvolumes.sync(directory_fd)
            renameat2(directory_fd, _SETTLED.encode(), directory_fd, _LAYER.encode(), consts.RENAME_EXCHANGE)
            if record.info.quota:
                self._limit(directory_fd, record.info.quota)  # it stays active if the commit fails
            self._destroy(directory_fd, _SETTLED)
        finally:
            os.close(directory_fd)

    def _committed(self, record: Record) -> None:
        fd = os.open(self._layer(record), DIRECTORY)
        try:
            subvolumes.set_read_only(fd, True)
        finally:
            os.close(fd)

    def _delete(self, parent_fd: int, name: str) -> None:
        """Delete a snapshot's directory with its subvolumes, and theirs."""
        fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
        try:
            for subvolume in (_LAYER, _SETTLED):
                self._destroy(fd, subvolume)
        finally:
            os.close(fd)
        trees.delete(parent_fd, name)

    def _destroy(self, directory_fd: int, name: str) -> None:
        try:
            fd = os.open(name, DIRECTORY, dir_fd=directory_fd)
        except FileNotFoundError:
            return
        is_ours = self._image is not None
        try:
            if not subvolumes.is_root(fd):
                return
            qgroups.lift(fd, subvolumes.number(fd), is_ours=is_ours)
        finally:
            os.close(fd)
        destroyed = subvolumes.destroy(directory_fd, name)
        self._destroyed += destroyed
        qgroups.forget(directory_fd, destroyed, is_ours=is_ours)

    def how_to_make_room(self) -> str:
        if self._image is None:
            return super().how_to_make_room()
        try:
            has = f"has {show_size(os.stat(self._image.path).st_size)}"
        except OSError:  # somebody has moved it away; this text is for another error
            has = "is full"
        return (
            f"{self._image.path} {has} (--storage-opt {LOOPSIZE}=…, which can be raised): {super().how_to_make_room()}"
        )

    def cleanup(self) -> None:
        super().cleanup()
        if self._image:
            qgroups.sweep(self._layout.fd)

    def close(self) -> None:
        if self._image:
            try:
                self._image.give_back(self._destroyed)
            finally:
                self._destroyed = []
                self._image.close(self._let_go)
        else:
            super().close()

    def _let_go(self) -> bool:
        """Close all but the image. Whether there is no snapshot that can be mounted."""
        try:
            with self._store.read() as transaction:
                idle = not transaction.execute("SELECT 1 FROM snapshots WHERE kind != 'committed' LIMIT 1")
        except DriverError:
            idle = False  # closed already, or by a process that opened it before fork()
        super().close()
        return idle


def _make_plain(layer_fd: int, settled_fd: int, reference: subvolumes.Reference) -> None:
    """Copy a subvolume in the layer to the same place in its snapshot, where there is an empty directory."""
    source_directory = subvolumes.open_directory(layer_fd, subvolumes.number(layer_fd), reference.directory)
    # A snapshot's inodes have the same numbers as in the subvolume that it was made of.
    target_directory = subvolumes.open_directory(settled_fd, subvolumes.number(settled_fd), reference.directory)
    try:
        before = os.fstat(target_directory)
        os.rmdir(reference.name, dir_fd=target_directory)
        source, target = fd_path(source_directory, reference.name), fd_path(target_directory, reference.name)
        copy_tree(os.fsdecode(source), os.fsdecode(target))
        os.utime(target_directory, ns=(before.st_atime_ns, before.st_mtime_ns))
    finally:
        os.close(source_directory)
        os.close(target_directory)


def _needs_image(root: str) -> bool:
    """Whether the root has a file with a file system in it, or needs one because it is not on btrfs itself."""
    return os.path.lexists(os.path.join(root, image.NAME)) or not _is_on_btrfs(root)


def _is_on_btrfs(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return subvolumes.is_btrfs(fd)
    finally:
        os.close(fd)


def probe(directory: str, options: Mapping[str, str]) -> Probe:
    """Make a subvolume there, or see whether a file could be mounted."""
    if _is_on_btrfs(directory):
        fd = os.open(directory, DIRECTORY)
        try:
            subvolumes.create(fd, "subvolume")
            subvolumes.destroy(fd, "subvolume")
        finally:
            os.close(fd)
        return Probe(True, "subvolumes and snapshots")
    try:
        os.close(mounts.fsopen("btrfs"))
    except OSError:
        return Probe(False, "this kernel has no btrfs: modprobe btrfs")
    if not os.path.exists("/dev/loop-control") and not os.path.isdir("/sys/module/loop"):
        return Probe(False, "there are no loop devices here: modprobe loop")
    if image.mkfs() is None:
        return Probe(False, image.NO_MKFS)
    return Probe(True, "subvolumes and snapshots in a file that is mounted by a loop device")
