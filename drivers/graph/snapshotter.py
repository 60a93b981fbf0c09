"""The part of a Snapshotter that is the graph in the metadata store: all that does not depend on what layers are.

A driver adds what a snapshot *is*: a directory, a subvolume, a dataset, a thin device. It does so in hooks, which are
called in the orders below; the row is what counts, so a crash anywhere leaves the snapshot whole or not at all:

    prepare, view   _create: make it, make it durable │ BEGIN; the row; give it its number; COMMIT │ its mounts
    commit          _check_idle, _settle, _measure, _make_durable │ BEGIN; the row; _commit_with; COMMIT │ _committed
    remove          _check_idle │ BEGIN; the row goes; _remove_with; COMMIT │ _discard

Data before names, names before the row (containerd#8895 is what happens otherwise: a layer that is known and empty).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

from drivers.api import Differences, Directories, Info, Kind, Mount, Usage
from drivers.errors import NotFound, NotSupported
from drivers.graph.store import Store
from drivers.graph.transaction import Record, Transaction


class NewSnapshot(NamedTuple):
    """What prepare() or view() was asked for; see drivers.api for the words."""

    key: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    quota: int
    volatile: bool


class GraphSnapshotter(ABC):
    """See drivers.api.Snapshotter for the public methods. Thread-safe as far as the hooks are."""

    # Options that cannot be changed once there is a store.
    FIXED: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, store: Store) -> None:
        """The store is the driver's from now on, and closed by close()."""
        self._store = store

    # What a driver adds.

    @abstractmethod
    def _create(self, new: NewSnapshot) -> list[Mount]:
        """Make an active snapshot or a view, row and all, and give its mounts."""

    @abstractmethod
    def _mounts(self, record: Record, line: Sequence[int]) -> list[Mount]:
        """The mounts of an active snapshot or a view; `line` are the ids of the layers below it, nearest first."""

    @abstractmethod
    def _measure(self, record: Record) -> Usage:
        """What it takes on disk by itself; it may be in use."""

    @abstractmethod
    def _make_durable(self, record: Record) -> None:
        """Bring the data and names of an unmounted active snapshot to the disk."""

    @abstractmethod
    def _discard(self, record: Record) -> None:
        """Delete what a snapshot was; its row has gone. What fails here is left to cleanup()."""

    @abstractmethod
    def cleanup(self) -> None: ...

    def _check_quota(self, quota: int) -> None:
        """Raise NotSupported if the driver cannot limit a snapshot to so many bytes here."""
        raise NotSupported(
            "this storage driver cannot limit the size of a container (--storage-opt size=): leave it out, or choose "
            "devicemapper, btrfs or zfs, or overlay2 or fuse-aufs on a file system with project quotas"
        )

    def _check_idle(self, record: Record) -> None:  # noqa: B027  (a driver that cannot tell has nothing to add)
        """Raise InUse if an active snapshot is still being written to."""

    def _settle(self, record: Record) -> None:  # noqa: B027  (nor one whose layers need no settling)
        """Bring an unmounted active snapshot into the form in which it is committed.

        The snapshot may stay active after this (commit may fail later), so what this takes away must be what a mount
        makes again.
        """

    def _commit_with(self, transaction: Transaction, record: Record) -> None:  # noqa: B027
        """What else changes in the transaction that commits it."""

    def _committed(self, record: Record) -> None:  # noqa: B027
        """What is done once it is committed; whoever finds it undone later does it then."""

    def _remove_with(self, transaction: Transaction, record: Record) -> None:  # noqa: B027
        """What else changes in the transaction that removes it."""

    # The Snapshotter.

    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        quota: int = 0,
        volatile: bool = False,
    ) -> list[Mount]:
        if quota:
            self._check_quota(quota)
        return self._create(NewSnapshot(key, parent, Kind.ACTIVE, labels or {}, quota, volatile))

    def view(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        return self._create(NewSnapshot(key, parent, Kind.VIEW, labels or {}, 0, False))

    def _parent_line(self, new: NewSnapshot) -> list[int]:
        """The ids below a snapshot that is to be made, nearest first. Raises as prepare() does."""
        with self._store.read() as transaction:
            transaction.check_free(new.key)
            return transaction.parent_line(new.parent)

    def _add_row(self, transaction: Transaction, new: NewSnapshot, line: list[int]) -> int:
        """Add the row of what was made on `line`, and give its number.

        All is looked up again: the key may have been taken, and the parent removed, while this was made.
        """
        if transaction.parent_line(new.parent) != line:
            raise NotFound(f"{new.parent} was replaced while {new.key} was made on it")
        return transaction.create(
            new.key, new.parent, new.kind, new.labels, quota=new.quota, volatile=new.volatile
        )

    def mounts(self, key: str) -> list[Mount]:
        with self._store.read() as transaction:
            record = transaction.get_mountable(key)
            line = transaction.ancestors(record)
        return self._mounts(record, line)

    def differences(self, key: str) -> Differences | None:
        self.stat(key)
        return None

    def directories(self, key: str) -> Directories | None:
        with self._store.read() as transaction:
            transaction.get_active(key)
        return None

    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None:
        with self._store.read() as transaction:
            record = transaction.get_active(key)
            transaction.check_free(name)
        self._check_idle(record)
        self._settle(record)
        usage = self._measure(record)
        # This order is the durability of every layer: its data and names, and only then the row that vouches for it.
        self._make_durable(record)
        with self._store.write() as transaction:
            if transaction.get_active(key).id != record.id:
                raise NotFound(f"{key} was replaced while it was committed")
            transaction.commit(name, key, usage, labels or {})
            self._commit_with(transaction, record)
        self._committed(record)

    def stat(self, key: str) -> Info:
        with self._store.read() as transaction:
            return transaction.get(key).info

    def update(self, info: Info) -> Info:
        with self._store.write() as transaction:
            return transaction.update(info).info

    def usage(self, key: str) -> Usage:
        with self._store.read() as transaction:
            record = transaction.get(key)
        return record.usage or self._measure(record)

    def walk(self) -> Iterator[Info]:
        with self._store.read() as transaction:
            records = transaction.walk()
        return iter([record.info for record in records])

    def remove(self, key: str) -> None:
        with self._store.read() as transaction:
            record = transaction.get(key)
        if record.info.kind is Kind.ACTIVE:
            self._check_idle(record)
        with self._store.write() as transaction:
            record = transaction.remove(key)
            self._remove_with(transaction, record)
        self._discard(record)

    def how_to_make_room(self) -> str:
        return f"free some space where {os.path.dirname(self._store.path)} is, and try again"

    def close(self) -> None:
        self._store.close()

    def check_invariants(self) -> None:
        """Nothing is left over, and everything is there; for tests, while nobody else uses the root."""
        self._store.check_invariants()
