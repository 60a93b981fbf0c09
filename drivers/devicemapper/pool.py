"""The thin pool of one root: up and down, its check, its growth, and what is wrong with it in a sentence.

A pool that is full answers writes with ENOSPC at once (error_if_no_space). The kernel's default holds them back for a
minute in the hope that somebody adds space, and fails them then: nobody here does so unasked, and a container that
hangs tells less than an error. Blocks are not zeroed before they are first written (skip_block_zeroing): all that is on
the devices is a file system each, which never reads what it has not written.
"""

from __future__ import annotations

import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

from drivers.devicemapper import blank, direct, ioctl, label, nodes, proof, records, thinmeta
from drivers.devicemapper.backing import Backing, Lower
from drivers.devicemapper.filesystem import run
from drivers.devicemapper.ioctl import SECTOR, Target
from drivers.devicemapper.options import Settings
from drivers.devicemapper.proof import DATA_MARK, METADATA_MARK
from drivers.devicemapper.status import PoolStatus, parse_pool
from drivers.errors import Unavailable
from drivers.graph.store import Store

THIN_METADATA_BLOCK_SIZE = 4096
THIN_METADATA_MAX_SIZE = 255 * 16320 * THIN_METADATA_BLOCK_SIZE  # drivers/md/dm-thin-metadata.h
NO_THIN_POOLS = "this kernel's device-mapper has no thin pools: modprobe dm_thin_pool"
GIVEN_MARK = "thin-pool given"  # what the store notes of dm.thinpooldev: its uuid, as device-mapper has it
# What holds a device for a moment (udev, blkid) is gone by then; what holds it longer keeps it.
PATIENCE = 2.0  # seconds
PAUSE = 0.02


class Pool(ABC):
    """`name` is the dm device's; immutable. Every method but status() wants the root's lock to be held."""

    def __init__(self, name: str, settings: Settings, store: Store) -> None:
        self.name = name
        self._settings = settings
        self._store = store

    @abstractmethod
    def is_made(self) -> bool:
        """Whether the pool has come into being. From then on it is never made again."""

    @abstractmethod
    def make(self) -> None:
        """Make it an empty pool, row and all, which need not be active. Raises Unavailable if it may not become ours;
        nothing has then been changed."""

    @abstractmethod
    def is_active(self) -> bool: ...

    @abstractmethod
    def check_ours(self) -> None:
        """Raise Unavailable if the active pool of this name is another's."""

    @abstractmethod
    def is_known(self) -> bool:
        """Whether that is certain, or what is in the pool has to show it."""

    @abstractmethod
    def note_known(self) -> None:
        """What is in the pool has shown it."""

    @abstractmethod
    def proven(self) -> AbstractContextManager[Lower | None]:
        """What the pool lies on, which has been found to be the pool's. Raises Unavailable; nothing is then changed."""

    @abstractmethod
    def activate(self, lower: Lower | None, *, check: bool) -> None:
        """Bring it up; with `check` only after thin_check has found its metadata sound."""

    @abstractmethod
    def deactivate(self) -> bool:
        """Take it down, if nothing is active in it. Whether it is down."""

    @abstractmethod
    def grow(self) -> None:
        """Take the space that has been added below, while it is in use."""

    @abstractmethod
    def how_to_grow(self) -> tuple[str, str]: ...

    @abstractmethod
    def how_to_repair(self) -> str: ...

    def uuid(self) -> str:
        """Of the device-mapper device; "" for none."""
        found = ioctl.status(self.name)
        return found.uuid if found else ""

    def status(self) -> PoolStatus:
        return parse_pool(ioctl.target_status(self.name).parameters)

    def thin(self, device: int, sectors: int) -> Target:
        """The table of a thin device."""
        pool = ioctl.status(self.name)
        if pool is None:
            raise Unavailable(f"the thin pool {self.name} has gone while it was used")
        return Target(sectors, "thin", f"{pool.number} {device}")

    def message(self, text: str) -> None:
        """Raises OSError: EEXIST or ENODATA for the thin devices it names, ENOSPC with a sentence if it is full."""
        try:
            ioctl.message(self.name, text)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENODATA, errno.EBUSY):
                raise
            # EOPNOTSUPP: a pool that is read-only or has failed takes no messages (pool_message()).
            self.check_works()
            raise OSError(error.errno, f"the thin pool refuses {text!r}: {error.strerror}", self.name) from error

    def check_works(self) -> PoolStatus:
        """Raise what keeps the pool from being changed: Unavailable, or OSError (ENOSPC)."""
        status = self.status()
        if status.failed or status.needs_check:
            raise Unavailable(
                f"the metadata of the thin pool {self.name} need a check, which is made when nothing uses it: stop "
                "the containers, and start again"
            )
        if status.mode == "ro":
            self._full("metadata", "is full", 1)
        return status

    def check_space(self) -> None:
        """Raise OSError (ENOSPC) with a sentence unless there is room for another snapshot (dm.min_free_space)."""
        status = self.check_works()
        least = self._settings.min_free_percent
        if status.mode == "out_of_data_space":
            self._full("data", "is full", 0)
        for what, free, which in (
            ("data", status.free_data_percent, 0), ("metadata", status.free_metadata_percent, 1)
        ):  # fmt: skip
            if free < least:
                self._full(what, f"is {free:.1f}% free, less than dm.min_free_space={least:g}%", which)

    def _full(self, what: str, how: str, which: int) -> NoReturn:
        grow = self.how_to_grow()[which]
        raise OSError(
            errno.ENOSPC, f"{what} space of the thin pool {how}: remove containers or images, or {grow}", self.name
        )


class OwnPool(Pool):
    """On files or block devices: made, checked, grown and taken down by us."""

    def __init__(self, name: str, settings: Settings, store: Store, backing: Backing) -> None:
        super().__init__(name, settings, store)
        self._backing = backing
        self._block = settings.block_size // SECTOR
        self._uuid = f"fuse-aufs-{store.identity}"  # of the dm device; those of older versions have none

    def is_made(self) -> bool:
        """One without a base, of an older version, which noted nothing, has no layer in it, and is made again."""
        with self._store.read() as transaction:
            return transaction.mark(METADATA_MARK) is not None or records.base(transaction) is not None

    def make(self) -> None:
        """The kernel makes a pool where metadata begin with zeros (__create_persistent_data_objects(),
        dm-thin-metadata.c); its uuid is ours to write, while it is down. Until all is done each step is begun again."""
        if self.is_active():
            self.check_ours()
            self.deactivate()
        identity = bytes.fromhex(self._store.identity)
        with self._store.write() as transaction:
            records.renew_pool(transaction)
        self._backing.clear()
        with self._backing.attached() as lower:  # type: ignore[attr-defined]
            self._backing.claim(lower, identity)
            for disk in lower:
                label.write(disk.fd, disk.sectors, disk.role, identity)
            direct.write(lower.metadata.fd, 0, bytes(thinmeta.BLOCK_SIZE))
            sectors = lower.data.sectors
            self._load(lower, sectors)
            if not self.deactivate():
                raise Unavailable(f"the new thin pool {self.name} is held by something: try again")
            thinmeta.set_uuid(lower.metadata.fd, identity)
        with self._store.write() as transaction:
            transaction.set_mark(METADATA_MARK, "")
            transaction.set_mark(DATA_MARK, str(sectors))
            records.set_pool_state(transaction, "down")

    def is_active(self) -> bool:
        found = ioctl.status(self.name)
        if found is not None and not found.has_table:
            remove(self.name)  # its maker died between creating and loading
            return False
        if found is not None and found.is_suspended:
            ioctl.resume(self.name)
        return found is not None

    def check_ours(self) -> None:
        with self._backing.attached() as lower:  # type: ignore[attr-defined]
            self._check_same(lower)

    def _check_same(self, lower: Lower) -> None:
        metadata, data = ioctl.table(self.name).parameters.split()[:2]
        is_named = self.uuid() in ("", self._uuid)
        if not is_named or (metadata, data) != (lower.metadata.number, lower.data.number):
            raise Unavailable(
                f"the thin pool {self.name} on the devices {metadata} and {data} is not that of "
                f"{lower.metadata.path} and {lower.data.path}: their names have changed, or it is that of a root which "
                "was deleted while it was in use; unmount what is on it and take it away with "
                f"`dmsetup remove {self.name}`"
            )

    def is_known(self) -> bool:
        return True  # it lies on what was proven to be ours

    def note_known(self) -> None:
        pass

    @contextmanager
    def proven(self) -> Iterator[Lower]:
        with self._backing.attached() as lower:  # type: ignore[attr-defined]
            for disk in lower:
                blank.check_unused(disk.path, disk.fd)
            proof.check(lower, proof.expected(self._store, self._block), self.how_to_repair())
            yield lower

    def activate(self, lower: Lower | None, *, check: bool) -> None:
        assert lower is not None
        self._backing.grow()
        if check:
            self._check()
        self._load(lower, self._labelled(lower))

    def _load(self, lower: Lower, labelled: int) -> None:
        ioctl.create(self.name, self._uuid)
        try:
            ioctl.load(self.name, self._table(lower, labelled))
            ioctl.resume(self.name)
        except BaseException as error:
            ioctl.remove(self.name)
            if isinstance(error, OSError):
                if ioctl.target_version("thin-pool") is None:
                    raise Unavailable(NO_THIN_POOLS) from error
                raise Unavailable(
                    f"the kernel does not take the thin pool of {self._backing.metadata} ({error.strerror}; dmesg "
                    f"says more): {self.how_to_repair()}"
                ) from error
            raise

    def _labelled(self, lower: Lower) -> int:
        """The size of the data device, which has the label at its end; 0 if it has none.

        When it has grown, the label is put at the new end and that is noted, before the pool gets where it was.
        """
        with self._store.read() as transaction:
            noted = int(transaction.mark(DATA_MARK) or 0)
        sectors = lower.data.sectors
        if noted and sectors > noted:
            label.write(lower.data.fd, sectors, lower.data.role, bytes.fromhex(self._store.identity))
            with self._store.write() as transaction:
                transaction.set_mark(DATA_MARK, str(sectors))
        return sectors if noted else 0

    def deactivate(self) -> bool:
        return ioctl.status(self.name) is None or remove(self.name)

    def grow(self) -> None:
        self._backing.grow()
        with self._backing.attached() as lower:  # type: ignore[attr-defined]
            self._check_same(lower)
            table = self._table(lower, self._labelled(lower))
            metadata = min(lower.metadata.sectors * SECTOR, THIN_METADATA_MAX_SIZE) // THIN_METADATA_BLOCK_SIZE
            status = self.status()
            if table.length <= ioctl.table(self.name).length and metadata <= status.total_metadata:
                return
            # The kernel looks at both sizes as it resumes with a new table (pool_preresume()). What is between is
            # undone by is_active(), for a suspended pool holds all its devices up.
            ioctl.load(self.name, table)
            ioctl.suspend_pool(self.name)
            ioctl.resume(self.name)

    def check_space(self) -> None:
        self._backing.check_room()
        try:
            super().check_space()
        except OSError:
            self.grow()  # space may have been added since we looked last
            super().check_space()

    def how_to_grow(self) -> tuple[str, str]:
        return self._backing.how_to_grow()

    def how_to_repair(self) -> str:
        path = self._backing.metadata
        return (
            f"repair a copy with `thin_repair -i {path} -o COPY`, COPY being a file or device of the same size, put it "
            "in its place, and check the file systems of the containers"
        )

    def _check(self) -> None:
        """The pool was not shut down, or the kernel asks for a check: its metadata are read through before anything
        is built on them. Only if they are sound thin_check takes the kernel's mark away."""
        command = ["thin_check", "-q", "--clear-needs-check-flag", self._backing.metadata]
        try:
            run(command, "thin-provisioning-tools")
        except Unavailable as error:
            if "not installed" in str(error):
                raise Unavailable(f"the thin pool was not shut down and must be checked, but {error}") from None
            raise Unavailable(f"{error}; nothing was changed: {self.how_to_repair()}") from None

    def _table(self, lower: Lower, labelled: int) -> Target:
        blocks = (label.usable(labelled) if labelled else lower.data.sectors) // self._block
        low_water = int(blocks * self._settings.min_free_percent / 100)
        disks = f"{lower.metadata.number} {lower.data.number}"
        return Target(
            blocks * self._block,
            "thin-pool",
            f"{disks} {self._block} {low_water} 2 skip_block_zeroing error_if_no_space",
        )


class GivenPool(Pool):
    """dm.thinpooldev: an administrator (or LVM) brings it up, checks, grows and takes it down."""

    def __init__(self, settings: Settings, store: Store) -> None:
        super().__init__(os.path.basename(settings.pool_device), settings, store)

    def is_made(self) -> bool:
        with self._store.read() as transaction:
            return records.pool(transaction) is not None

    def make(self) -> None:
        self.is_active()
        status = self.status()
        if status.transaction_id or status.used_data:
            raise Unavailable(f"the thin pool {self.name} is in use already: dm.thinpooldev must be an empty one")
        with self._store.write() as transaction:
            records.renew_pool(transaction)
            transaction.set_mark(GIVEN_MARK, self.uuid())

    def is_active(self) -> bool:
        if ioctl.status(self.name) is None:
            raise Unavailable(f"there is no thin pool {self.name} (dm.thinpooldev): activate it, or mind its name")
        if (found := ioctl.table(self.name)).type != "thin-pool":
            raise Unavailable(f"dm.thinpooldev={self._settings.pool_device} is no thin pool but {found.type}")
        return True

    def check_ours(self) -> None:
        """By what is in it, if it does not bear the name that LVM gave the one of last time. One without anything in it
        may be any; but without our base and not empty it is another's, whose devices have numbers that ours would."""
        with self._store.read() as transaction:
            has_base = records.base(transaction) is not None
        if not (self.is_known() or has_base) and self.status().used_data:
            raise Unavailable(
                f"the thin pool {self.name} (dm.thinpooldev) is not the one that this root was made with: mind its name"
            )

    def is_known(self) -> bool:
        with self._store.read() as transaction:
            noted = transaction.mark(GIVEN_MARK)
        return bool(noted) and noted == self.uuid()

    def note_known(self) -> None:
        if uuid := self.uuid():
            with self._store.write() as transaction:
                transaction.set_mark(GIVEN_MARK, uuid)

    @contextmanager
    def proven(self) -> Iterator[None]:
        yield

    def activate(self, lower: Lower | None, *, check: bool) -> None:
        self.is_active()

    def deactivate(self) -> bool:
        return True

    def grow(self) -> None:
        pass

    def how_to_grow(self) -> tuple[str, str]:
        extend = f"enlarge the pool {self.name}"
        return f"{extend} (lvextend --extents)", f"{extend} (lvextend --poolmetadatasize)"

    def how_to_repair(self) -> str:
        return f"repair the pool {self.name} (lvconvert --repair)"


def remove(name: str, *, deferred: bool = False, patience: float = PATIENCE) -> bool:
    """Remove a dm device: try for a while if it is open. Whether it is gone; with `deferred`, it goes when it is closed
    if it is not. No such device is fine."""
    device = ioctl.status(name)
    if device is None:
        return True
    deadline = time.monotonic() + patience
    while True:
        try:
            ioctl.remove(name)
            nodes.forget(device)
            return True
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            if error.errno != errno.EBUSY:
                raise
        if time.monotonic() >= deadline:
            break
        time.sleep(PAUSE)  # closing a block device is no event that can be waited for
    if deferred:
        try:
            return ioctl.remove(name, deferred=True)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return True
    return False
