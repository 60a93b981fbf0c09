"""The Snapshotter of datasets; drivers/zfs/__init__.py says how it hangs together."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from drivers.api import Kind, Mount, Usage
from drivers.disk.locks import locked
from drivers.disk.ownership import own_directory
from drivers.errors import DriverError, InUse, NotFound, Unavailable
from drivers.graph.snapshotter import GraphSnapshotter, NewSnapshot
from drivers.graph.store import STORE, Store
from drivers.graph.transaction import Record, Transaction
from drivers.zfs.command import destroy, zfs
from drivers.zfs.probing import OPTIONS
from drivers.zfs.top import PLACE, TopDataset
from unionfs.linux.mounts import mountinfo

SCHEMA = (
    PLACE,
    "CREATE TABLE datasets (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, snapshot TEXT)",
)
_DATASET = re.compile(r"/[0-9a-f]{16}")  # of ours, below the top one
_OURS = re.compile(r"layer-[0-9a-f]{16}")
_BUSY_SECONDS = 10.0


class _Commit(threading.local):
    """What the hooks of one commit() or remove() tell each other; there is one per thread at a time."""

    held: int | None = None
    snapshot = ""
    dataset = ""


class Driver(GraphSnapshotter):
    NAME = "zfs"
    FIXED = frozenset(OPTIONS)

    def __init__(self, root: str, options: Mapping[str, str]) -> None:
        self._root = own_directory(root)
        self._now = _Commit()
        super().__init__(
            Store(
                os.path.join(self._root, STORE), self.NAME, SCHEMA, options=options, fixed=self.FIXED,
                has_content=lambda: os.path.exists(os.path.join(self._root, "making")),  # _making() is for every layer
            )
        )  # fmt: skip
        try:
            self._top_dataset = TopDataset(self._root, self._store)
        except BaseException:
            self._store.close()
            raise
        self._top = self._top_dataset.name

    @contextmanager
    def _making(self, *, alone: bool = False) -> Iterator[int]:
        """Hold the lock that says that something half-made is somebody's; cleanup() holds it alone.

        Everybody passes the gate first. While cleanup() waits there for others to finish, no newcomer overtakes it.
        """
        with ExitStack() as holding:
            with locked(os.path.join(self._root, "gate")):
                held = holding.enter_context(locked(os.path.join(self._root, "making"), shared=not alone))
            yield held

    # The hooks of GraphSnapshotter.

    def _check_quota(self, quota: int) -> None:
        """Every dataset can have one."""

    def _create(self, new: NewSnapshot) -> list[Mount]:
        line = self._parent_line(new)
        if new.kind is Kind.VIEW and line:
            with self._store.write() as transaction:
                self._add_row(transaction, new, line)
                return self._view_of(transaction, line)
        name = self._new_name()
        with self._making() as held, self._explaining():
            self._top_dataset.check_ours()
            try:
                self._make_dataset(name, new, line, held)
                with self._store.write() as transaction:
                    number = self._add_row(transaction, new, line)
                    transaction.execute("INSERT INTO datasets (id, name) VALUES (?, ?)", (number, name))
            except BaseException:
                self._give_up(name)
                raise
        return self._mount_of(name, new.kind)

    def _new_name(self) -> str:
        """A name that says how many snapshots there had been: so an older copy of the store is found out, before it
        makes everybody's layers garbage (Store.check_newest)."""
        with self._store.read() as transaction:
            return f"{transaction.last_id() + 1:08x}{os.urandom(4).hex()}"

    def _make_dataset(self, name: str, new: NewSnapshot, line: list[int], held: int) -> None:
        """Make it, as durably as zfs(8) does everything. Raises as prepare() does."""
        properties = []
        if new.quota:
            properties.append(f"-oquota={new.quota}")
        if new.volatile:
            properties.append("-osync=disabled")
        if not line:
            zfs("create", *properties, f"{self._top}/{name}", held=held)
            return
        with self._store.read() as transaction:
            origin = self._snapshot(transaction, line[0])
        try:
            zfs("clone", *properties, origin, f"{self._top}/{name}", held=held)
        except FileNotFoundError:
            with self._store.read() as transaction:
                if transaction.parent_line(new.parent) != line:
                    raise NotFound(f"{new.parent} was removed meanwhile") from None
            raise

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """When one dataset is not there because none of ours is, say that instead."""
        try:
            yield
        except FileNotFoundError:
            try:
                zfs("list", self._top)
            except FileNotFoundError:
                raise Unavailable(f"{self._top} is missing: is its pool imported? (zpool import)") from None
            raise

    def _give_up(self, name: str) -> None:
        """Destroy what was made for nothing, unless it has a row after all: a COMMIT that fails may have succeeded."""
        try:
            with self._store.read() as transaction:
                if transaction.execute("SELECT 1 FROM datasets WHERE name = ?", (name,)):
                    return
            destroy(f"{self._top}/{name}", 0)
        except (DriverError, OSError):
            pass  # then it is for cleanup(), and the caller hears of the first failure

    def _mounts(self, record: Record, line: Sequence[int]) -> list[Mount]:
        with self._store.read() as transaction:
            if record.info.kind is Kind.VIEW and line:
                return self._view_of(transaction, line)
            name = self._dataset(transaction, record.id)
        return self._mount_of(name, record.info.kind)

    def _mount_of(self, name: str, kind: Kind) -> list[Mount]:
        return [Mount("zfs", f"{self._top}/{name}", ("ro" if kind is Kind.VIEW else "rw",))]

    def _view_of(self, transaction: Transaction, line: Sequence[int]) -> list[Mount]:
        return [Mount("zfs", self._snapshot(transaction, line[0]), ("ro",))]

    def _dataset(self, transaction: Transaction, number: int) -> str:
        """The last part of the name of a snapshot's dataset; "" if it has none, being a view of its parent."""
        rows = transaction.execute("SELECT name FROM datasets WHERE id = ?", (number,))
        return str(rows[0][0]) if rows else ""

    def _snapshot(self, transaction: Transaction, number: int) -> str:
        """The full name of what stands for a committed snapshot. Raises NotFound."""
        rows = transaction.execute("SELECT name, snapshot FROM datasets WHERE id = ? AND snapshot <> ''", (number,))
        if not rows:
            raise NotFound("the parent was removed meanwhile")
        return f"{self._top}/{rows[0][0]}@{rows[0][1]}"

    def _check_idle(self, record: Record) -> None:
        """Every mount namespace is asked: the container of a forgotten process may still write."""
        with self._store.read() as transaction:
            dataset = f"{self._top}/{self._dataset(transaction, record.id)}"
        asked = set()
        for pid in (name for name in os.listdir("/proc") if name.isdigit()):
            try:
                namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
                if namespace in asked:
                    continue
                asked.add(namespace)
                for point in mountinfo(pid):
                    if point.fstype == "zfs" and point.source == dataset:
                        raise InUse(f"{record.info.name} is mounted at {point.target} by process {pid}")
            except OSError:
                continue  # it has ended

    def _measure(self, record: Record) -> Usage:
        """Blocks that no other dataset has. zfs does not say how many files they belong to."""
        with self._store.read() as transaction:
            name = self._dataset(transaction, record.id)
        return Usage(0, int(zfs("get", "-Hp", "-ovalue", "used", f"{self._top}/{name}")) if name else 0)

    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None:
        with self._making() as held, self._explaining():
            self._top_dataset.check_ours()
            self._now.held = held
            try:
                super().commit(name, key, labels=labels)
            finally:
                self._now.held = None

    def _make_durable(self, record: Record) -> None:
        """Take the snapshot that the children will be clones of: with it, what was written is on the disk.

        One that is taken and then not committed, because somebody else had the name, is for cleanup().
        """
        with self._store.read() as transaction:
            name = self._dataset(transaction, record.id)
        self._now.snapshot = f"layer-{os.urandom(8).hex()}"
        zfs("snapshot", f"{self._top}/{name}@{self._now.snapshot}", held=self._now.held)

    def _commit_with(self, transaction: Transaction, record: Record) -> None:
        transaction.execute("UPDATE datasets SET snapshot = ? WHERE id = ?", (self._now.snapshot, record.id))

    def remove(self, key: str) -> None:
        with suppress(FileNotFoundError):  # then there is nothing of it to destroy
            self._top_dataset.check_ours()
        super().remove(key)

    def _remove_with(self, transaction: Transaction, record: Record) -> None:
        self._now.dataset = self._dataset(transaction, record.id)
        transaction.execute("DELETE FROM datasets WHERE id = ?", (record.id,))

    def _discard(self, record: Record) -> None:
        if self._now.dataset:
            destroy(f"{self._top}/{self._now.dataset}", _BUSY_SECONDS)

    def how_to_make_room(self) -> str:
        return f"free some space in the pool of {self._top}, or look for a quota on what is above it: zfs list -o space"

    def cleanup(self) -> None:
        self._store.check_whole()
        with self._making(alone=True), self._explaining():
            self._top_dataset.check_ours()
            garbage, snapshots = self._find_garbage()
        for snapshot in snapshots:
            self._is_destroyed(snapshot)
        # Garbage may be a clone of other garbage, made in the same moment: so in rounds, until one gets nowhere.
        while garbage:
            left = [name for name in garbage if not self._is_destroyed(name)]
            if len(left) == len(garbage):
                return  # mounted, held or cloned by somebody: for a later cleanup()
            garbage = left

    def _is_destroyed(self, name: str) -> bool:
        try:
            destroy(name, 0)
        except OSError:
            return False
        return True

    def _find_garbage(self) -> tuple[list[str], list[str]]:
        """Our datasets that no row names, and snapshots of ours on the others that no row names."""
        listed = self._listed()
        newest = max((int(name[:8], 16) for name, _ in listed), default=0)
        self._store.check_newest(newest, f"dataset below {self._top}")
        known = self._known()
        garbage, snapshots = [], []
        for name, snapshot in listed:
            if name not in known and not snapshot:
                garbage.append(f"{self._top}/{name}")
            elif name in known and _OURS.fullmatch(snapshot) and snapshot != known[name]:
                snapshots.append(f"{self._top}/{name}@{snapshot}")
        return garbage, snapshots

    def _known(self) -> dict[str, str]:
        """The datasets that rows name, each with its snapshot once it has one."""
        with self._store.read() as transaction:
            rows = transaction.execute("SELECT name, ifnull(snapshot, '') FROM datasets")
        return {str(name): str(snapshot) for name, snapshot in rows}

    def _listed(self) -> list[tuple[str, str]]:
        """Our datasets, and all snapshots of them: (name, "" or snapshot). Clones come before their origins."""
        what = ("-oname", "-tfilesystem,snapshot", "-Screatetxg", "-d2", self._top)
        names = (full.removeprefix(self._top).partition("@") for full in zfs("list", "-Hr", *what).splitlines())
        return [(name[1:], snapshot) for name, _, snapshot in names if _DATASET.fullmatch(name)]

    def check_invariants(self) -> None:
        super().check_invariants()
        known, listed = self._known(), self._listed()
        assert {name for name, _ in listed} == set(known)
        ours = [(name, snapshot) for name, snapshot in listed if _OURS.fullmatch(snapshot)]
        assert sorted(ours) == sorted((name, snapshot) for name, snapshot in known.items() if snapshot)
        with self._store.read() as transaction:
            for record in transaction.walk():
                name = self._dataset(transaction, record.id)
                assert bool(known.get(name)) == (record.info.kind is Kind.COMMITTED), record
                assert name or (record.info.kind is Kind.VIEW and record.info.parent), record
