"""A Snapshotter whose layers are directories: everything that fuse-aufs, overlay2 and vfs have in common.

    <root>/snapshots/17/fs      the layer with id 17
    <root>/snapshots/17/…       what else the driver needs beside it

A driver says how a new layer begins (`_begin`), what is mounted (`_tree`), and how a layer is brought to rest before
it is committed (`_settle`). Here is the order of things:

    prepare  fill new-X, make it durable │ BEGIN; add the row; new-X -> id; COMMIT
    commit   settle; measure; syncfs     │ BEGIN; change the row; COMMIT
    remove   BEGIN; delete the row; COMMIT │ id -> rm-X; delete

Data before names, names before the row (containerd#8895 is what happens otherwise: a layer that is known and empty).
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

from drivers.api import Info, Kind, Usage
from drivers.errors import NotFound
from drivers.layout import Layout, sync_file_system
from drivers.metadata import Store
from drivers.mounts import Mount
from drivers.trees import disk_usage

STORE = "metadata.db"


class DirectorySnapshotter(ABC):
    """See drivers.api.Snapshotter for the methods. Thread-safe, as its two parts are; both are immutable fields."""

    def __init__(self, root: str, name: str) -> None:
        self._layout = Layout(root)
        try:
            self._store = Store(os.path.join(self._layout.root, STORE), name)
        except BaseException:
            self._layout.close()
            raise

    # What a driver adds.

    @abstractmethod
    def _begin(self, directory: str, kind: Kind, parents: Sequence[str]) -> None:
        """Fill the new, empty `directory` of a snapshot, `fs` at least, and make that durable.

        `parents` are the `fs` directories of the layers below, nearest first.
        """

    @abstractmethod
    def _tree(self, directory: str, kind: Kind, parents: Sequence[str]) -> list[Mount]:
        """The mounts of an active snapshot or a view."""

    def _check_idle(self, layer: str) -> None:  # noqa: B027  (a driver that cannot tell has nothing to add)
        """Raise InUse if the layer of an active snapshot is still being written to."""

    def _settle(self, layer: str) -> None:  # noqa: B027  (nor one whose layers need no settling)
        """Bring the layer of an unmounted active snapshot into the form in which it is committed.

        The snapshot may stay active after this (commit may fail later), so what this takes away must be what a mount
        makes again.
        """

    # The Snapshotter.

    def prepare(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        return self._create(key, parent, Kind.ACTIVE, labels)

    def view(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        return self._create(key, parent, Kind.VIEW, labels)

    def _create(self, key: str, parent: str, kind: Kind, labels: Mapping[str, str] | None) -> list[Mount]:
        with self._store.read() as transaction:
            transaction.check_free(key)
            line = transaction.parent_line(parent)
        parents = self._layers(line)
        with self._layout.staging() as staging:
            try:
                self._begin(staging.path, kind, parents)
            except FileNotFoundError:
                self._check_parent(parent, line)
                raise
            with self._store.write() as transaction:
                # All is looked up again: the key may have been taken, and the parent removed, while we filled.
                if transaction.parent_line(parent) != line:
                    raise NotFound(f"{parent} was replaced while {key} was made on it")
                number = transaction.create(key, parent, kind, labels or {})
                staging.publish(number)
        return self._tree(self._layout.join(number), kind, parents)

    def _check_parent(self, parent: str, line: list[int]) -> None:
        """Raise NotFound if the reason that a parent's file was missing is that it is being removed."""
        with self._store.read() as transaction:
            if transaction.parent_line(parent) != line:
                raise NotFound(f"{parent} was removed meanwhile")

    def mounts(self, key: str) -> list[Mount]:
        with self._store.read() as transaction:
            record = transaction.get_mountable(key)
            line = transaction.ancestors(record)
        return self._tree(self._layout.join(record.id), record.info.kind, self._layers(line))

    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None:
        with self._store.read() as transaction:
            record = transaction.get_active(key)
            transaction.check_free(name)
        layer = self._layout.join(record.id, "fs")
        self._check_idle(layer)
        self._settle(layer)
        usage = disk_usage(layer)
        # This order is the durability of every layer: its data and names, and only then the row that vouches for it.
        sync_file_system(layer)
        with self._store.write() as transaction:
            if transaction.get_active(key).id != record.id:
                raise NotFound(f"{key} was replaced while it was committed")
            transaction.commit(name, key, usage, labels or {})

    def stat(self, key: str) -> Info:
        with self._store.read() as transaction:
            return transaction.get(key).info

    def update(self, info: Info) -> Info:
        with self._store.write() as transaction:
            return transaction.update(info).info

    def usage(self, key: str) -> Usage:
        with self._store.read() as transaction:
            record = transaction.get(key)
        return record.usage or disk_usage(self._layout.join(record.id, "fs"))

    def walk(self) -> Iterator[Info]:
        with self._store.read() as transaction:
            records = transaction.walk()
        return iter([record.info for record in records])

    def remove(self, key: str) -> None:
        with self._store.read() as transaction:
            record = transaction.get(key)
        if record.info.kind is Kind.ACTIVE:
            self._check_idle(self._layout.join(record.id, "fs"))
        with self._store.write() as transaction:
            record = transaction.remove(key)
        if retired := self._layout.retire(record.id):
            self._layout.discard(retired)

    def cleanup(self) -> None:
        with self._store.write() as transaction:
            # Inside: with the write lock ours, nobody is between publishing a directory and committing its row.
            self._layout.retire_all_but(transaction.ids())
        self._layout.sweep()

    def close(self) -> None:
        self._store.close()
        self._layout.close()

    def check_invariants(self) -> None:
        """Store and directories agree, and nothing is left over; for tests, while nobody else uses the root."""
        self._store.check_invariants()
        with self._store.read() as transaction:
            self._layout.check_invariants(transaction.ids())

    def _layers(self, line: Sequence[int]) -> list[str]:
        return [self._layout.join(number, "fs") for number in line]


def begin_layer(path: str, parents: Sequence[str], is_private: Callable[[bytes], bool]) -> None:
    """Make the empty directory of a layer of differences.

    It is the root of its tree, so it takes mode, owner, attributes and times of the root below, but for the attributes
    that say something of the layer itself: those for which `is_private` is true.
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
