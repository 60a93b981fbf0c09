"""The dataset of one root, above all its others: made by whoever opens the root first, and recognised afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping

from drivers.errors import Unavailable
from drivers.graph.store import Store
from drivers.zfs.command import zfs
from drivers.zfs.probing import place_of

PLACE = "CREATE TABLE place (top TEXT NOT NULL, made INTEGER NOT NULL)"  # `made` once the dataset exists; one row
_OWNER = "fuse-aufs:store"  # the property with the store's identity, and what the store notes of having set it
# Inherited by everything below. Names are bytes to us; POSIX ACLs and other attributes are part of a layer and are kept
# in the inode; snapshots by zfs-auto-snapshot would only take room.
_PROPERTIES = {
    "mountpoint": "legacy",
    "readonly": "off",
    "acltype": "posix",
    "xattr": "sa",
    "com.sun:auto-snapshot": "false",
}
# What can be set only when a dataset is made.
_FROM_BIRTH = {"utf8only": "off", "normalization": "none", "casesensitivity": "sensitive"}


class TopDataset:
    """`name` is the dataset's; immutable. Thread-safe: the check may be made twice."""

    def __init__(self, root: str, store: Store) -> None:
        """Raises Unavailable if it cannot be made."""
        self._root = root
        self._store = store
        self._is_checked = False
        self.name = self._settle()

    def _settle(self) -> str:
        """The dataset of this root, made by whoever opens it first. Its name is durable before it exists."""
        with self._store.read() as transaction:
            rows = transaction.execute("SELECT top FROM place WHERE made")
        if rows:
            return str(rows[0][0])
        with self._store.write() as transaction:
            if not transaction.execute("SELECT 1 FROM place"):
                name = f"{place_of(self._root, self._store.options)}/fuse-aufs-{os.urandom(4).hex()}"
                transaction.execute("INSERT INTO place VALUES (?, 0)", (name,))
        with self._store.write() as transaction:
            [(top, made)] = transaction.execute("SELECT top, made FROM place")
            if not made:
                self._make(str(top))
                transaction.execute("UPDATE place SET made = 1")
                transaction.set_mark(_OWNER, "")
            return str(top)

    def _make(self, top: str) -> None:
        properties = {**_PROPERTIES, "fuse-aufs:root": self._root, _OWNER: self._store.identity}
        try:
            try:
                self._with_hidden_snapshots("create", {**_FROM_BIRTH, **properties}, top, option="-o")
            except FileExistsError:
                if not self._is_half_made(top):
                    raise
                self._with_hidden_snapshots("set", properties, top)
        except FileExistsError:
            if self._owner(top) != self._store.identity:  # else it was made by one of ours that was killed afterwards
                raise Unavailable(f"{top} cannot be made: somebody else has just made it") from None
        except OSError as error:
            raise Unavailable(f"{top} cannot be made: {error.strerror}") from error

    @staticmethod
    def _with_hidden_snapshots(verb: str, properties: Mapping[str, str], top: str, *, option: str = "") -> None:
        words = [f"{option}{name}={value}" for name, value in properties.items()]
        try:
            zfs(verb, *words, f"{option}snapdir=disabled", top)
        except FileExistsError:
            raise
        except OSError:
            # OpenZFS before 2.3 can only hide .zfs, as it does by default: a container that knows it can enter.
            zfs(verb, *words, top)

    def _is_half_made(self, top: str) -> bool:
        """The name is ours, and properties are set after a dataset is made (zfs_ioc_create(), module/zfs/zfs_ioctl.c):
        a command cut off between the two, or one that outlives its caller, leaves a dataset to be seen without any."""
        found = zfs("get", "-Hr", "-tall", "-slocal,received", "-oname,property", "all", top)
        return not found and zfs("list", "-Hr", "-tall", "-oname", top).split("\n") == [top, ""]

    def _owner(self, top: str, name: str = _OWNER) -> str:
        """A property of ours, which `top` has itself or has brought along from where it was sent; "" if it has none.
        FileNotFoundError if there is no such dataset."""
        value, source = zfs("get", "-Hp", "-ovalue,source", name, top).rstrip("\n").split("\t")
        return value if source in ("local", "received") else ""

    def check_ours(self) -> None:
        """Raise Unavailable if another dataset has the name by now: one made anew, or of another pool. Looked up once,
        before anything is made or destroyed in it. FileNotFoundError if there is none."""
        if self._is_checked:
            return
        with self._store.read() as transaction:
            is_marked = transaction.mark(_OWNER) is not None
        found = self._owner(self.name)
        if not (found or is_marked) and self._owner(self.name, "fuse-aufs:root"):  # of an older version
            zfs("set", f"{_OWNER}={self._store.identity}", self.name)
            found = self._store.identity
        if found != self._store.identity:
            raise Unavailable(
                f"{self.name} is not the dataset that the layers of {self._root} are in: it was made anew, or is of "
                "another pool; put back the one that belongs here; nothing was changed"
            )
        if not is_marked:
            with self._store.write() as transaction:
                transaction.set_mark(_OWNER, "")
        self._is_checked = True
