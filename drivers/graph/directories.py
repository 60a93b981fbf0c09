"""A Snapshotter whose layers are directories: everything that fuse-aufs, overlay2, vfs and btrfs have in common.

    <root>/snapshots/17/fs      the layer with id 17
    <root>/snapshots/17/…       what else the driver needs beside it

A driver says how a new layer begins (`_begin`), what is mounted (`_tree`), and how a layer is brought to rest before it
is committed (`_settle`).
"""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

from drivers.api import Directories, Form, Kind, Mount, Usage
from drivers.disk import trees
from drivers.disk.durable import sync_file_system
from drivers.disk.ownership import own_directory
from drivers.disk.trees import disk_usage
from drivers.errors import NotFound, Unavailable
from drivers.graph.layout import Layout, has_snapshots
from drivers.graph.snapshotter import GraphSnapshotter, NewSnapshot
from drivers.graph.store import STORE, Store
from drivers.graph.transaction import Record

_MARK = "snapshots"


class DirectorySnapshotter(GraphSnapshotter):
    """See drivers.api.Snapshotter for the methods. Thread-safe, as its store and layout are; neither is replaced."""

    NAME: str

    def __init__(
        self, root: str, options: Mapping[str, str], *, delete: Callable[[int, str], None] = trees.delete
    ) -> None:
        """`delete(directory descriptor, name)` deletes a snapshot's directory, where `trees.delete` is not enough."""
        self._root = own_directory(root)
        super().__init__(
            Store(
                os.path.join(self._root, STORE),
                self.NAME,
                options=options,
                fixed=self.FIXED,
                has_content=self._has_content,
            )
        )
        try:
            self._layout = Layout(self._root, delete, place=self._place())
            try:
                self._check_identity()
                self._store.check_newest(self._layout.newest(), "beside it")
            except BaseException:
                self._layout.close()
                raise
        except BaseException:
            self._store.close()
            raise

    def _check_identity(self) -> None:
        """Raise Unavailable unless the snapshots' directory is the one that the store was made with: where a disk has
        been mounted, or no longer is, we would delete layers that are not ours, or call damaged what is elsewhere."""
        found = self._layout.identity()
        with self._store.read() as transaction:
            is_marked = transaction.mark(_MARK) is not None
            numbers = transaction.ids()
        if found == self._store.identity and is_marked:
            return
        # Stores of older versions have written none.
        is_ours = not numbers or any(os.path.isdir(self._layout.join(number)) for number in numbers)
        if found != self._store.identity and (is_marked or found or not is_ours):
            whose = "those of another store" if found else "not those of this root"
            raise Unavailable(
                f"the layers in {self._root}/snapshots are {whose} ({self._store.path}): is another disk mounted "
                "there, or none? put back what belongs there; nothing was changed"
            )
        with self._store.write() as transaction:
            if self._layout.identity() != self._store.identity:
                self._layout.set_identity(self._store.identity)
            transaction.set_mark(_MARK, "")

    # What a driver adds.

    def _has_content(self) -> bool:
        """Whether the root has layers. Asked before there is a store."""
        return has_snapshots(self._root)

    def _place(self) -> int | None:
        """A descriptor of where the snapshots are, if that is not in the root. The store is open by then."""
        return None

    def _is_layer(self, path: str) -> bool:
        """Whether what is at the path can be a layer of a snapshot."""
        return os.path.isdir(path) and not os.path.islink(path)

    @abstractmethod
    def _begin(self, directory: str, new: NewSnapshot, parents: Sequence[str]) -> None:
        """Fill the new, empty `directory` of a snapshot, `fs` at least, and make that durable.

        `parents` are the `fs` directories of the layers below, nearest first.
        """

    @abstractmethod
    def _tree(self, directory: str, kind: Kind, parents: Sequence[str], *, volatile: bool) -> list[Mount]:
        """The mounts of an active snapshot or a view."""

    # The hooks of GraphSnapshotter.

    def _create(self, new: NewSnapshot) -> list[Mount]:
        line = self._parent_line(new)
        parents = self._layers(line)
        try:
            self._check_there(line)
        except Unavailable:
            self._check_parent(new.parent, line)
            raise
        with self._layout.staging() as staging:
            try:
                self._begin(staging.path, new, parents)
            except FileNotFoundError:
                self._check_parent(new.parent, line)
                raise
            with self._store.write() as transaction:
                number = self._add_row(transaction, new, line)
                staging.publish(number)
        return self._tree(self._layout.join(number), new.kind, parents, volatile=new.volatile)

    def _check_parent(self, parent: str, line: list[int]) -> None:
        """Raise NotFound if something of a parent was missing because the parent is being removed."""
        with self._store.read() as transaction:
            if transaction.parent_line(parent) != line:
                raise NotFound(f"{parent} was removed meanwhile")

    def _check_there(self, numbers: Sequence[int]) -> None:
        """Raise Unavailable if somebody has deleted a layer: a mount would only say that something is missing."""
        for number, layer in zip(numbers, self._layers(numbers), strict=True):
            if not self._is_layer(layer):
                how = "not what it was" if os.path.lexists(layer) else "missing"
                raise Unavailable(
                    f"a layer is damaged: {self._root}/snapshots/{number}/fs is {how}; remove the images and "
                    "containers that stand on it, and get them again"
                )

    def _mounts(self, record: Record, line: Sequence[int]) -> list[Mount]:
        info, parents = record.info, self._layers(line)
        self._check_there(line if info.kind is Kind.VIEW and line else [record.id, *line])
        return self._tree(self._layout.join(record.id), info.kind, parents, volatile=info.volatile)

    def _stacked(self, key: str, form: Form) -> Directories:
        """directories() of a driver whose layers are differences."""
        with self._store.read() as transaction:
            record = transaction.get_active(key)
            line = transaction.ancestors(record)
        self._check_there([record.id, *line])
        return Directories(self._layer(record), tuple(self._layers(line)), form)

    def _measure(self, record: Record) -> Usage:
        return disk_usage(self._layer(record))

    def _make_durable(self, record: Record) -> None:
        sync_file_system(self._layer(record))

    def _discard(self, record: Record) -> None:
        self._layout.remove(record.id)

    def cleanup(self) -> None:
        self._store.check_whole()
        with self._store.write() as transaction:
            # Inside: while we have the write lock, nobody is between publishing a directory and committing its row.
            stuck = self._layout.retire_all_but(transaction.ids(), transaction.last_id())
        for number in stuck:
            self._layout.remove(number)
        self._layout.sweep()

    def close(self) -> None:
        super().close()
        self._layout.close()

    def check_invariants(self) -> None:
        super().check_invariants()
        with self._store.read() as transaction:
            self._layout.check_invariants(transaction.ids())

    def _layer(self, record: Record) -> str:
        return self._layout.join(record.id, "fs")

    def _layers(self, line: Sequence[int]) -> list[str]:
        return [self._layout.join(number, "fs") for number in line]


def begin_layer(path: str, parents: Sequence[str], is_private: Callable[[bytes], bool]) -> None:
    """Make the empty directory of a layer of differences.

    It is the root of its tree, so it takes mode, owner, attributes and times of the root below, except the attributes
    that say something about the layer itself: those for which `is_private` is true.
    """
    os.mkdir(path)
    if not parents:
        os.chmod(path, 0o755)  # whatever the umask is
        return
    below = os.stat(parents[0])
    os.chown(path, below.st_uid, below.st_gid)
    os.chmod(path, stat.S_IMODE(below.st_mode))
    for attribute in os.listxattr(parents[0]):
        if not is_private(attribute.encode()):
            os.setxattr(path, attribute, os.getxattr(parents[0], attribute))
    os.utime(path, ns=(below.st_atime_ns, below.st_mtime_ns))


def bind(path: str, kind: Kind) -> list[Mount]:
    """The mounts of a tree that is one directory."""
    return [Mount("bind", path, ("ro" if kind is Kind.VIEW else "rw",))]
