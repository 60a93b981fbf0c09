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
from typing import NoReturn

from drivers.devicemapper import ioctl, nodes
from drivers.devicemapper.backing import Backing, Lower
from drivers.devicemapper.filesystem import run
from drivers.devicemapper.ioctl import SECTOR, Target
from drivers.devicemapper.options import Settings
from drivers.devicemapper.status import PoolStatus, parse_pool
from drivers.errors import Unavailable

THIN_METADATA_BLOCK_SIZE = 4096
THIN_METADATA_MAX_SIZE = 255 * 16320 * THIN_METADATA_BLOCK_SIZE  # drivers/md/dm-thin-metadata.h
# What holds a device for a moment (udev, blkid) is gone by then; what holds it longer keeps it.
PATIENCE = 2.0  # seconds
PAUSE = 0.02


class Pool(ABC):
    """`name` is the dm device's; immutable. Held by drivers.locks: every method but status() wants the root's lock."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings

    @abstractmethod
    def claim(self) -> None:
        """Raise Unavailable if the pool may not become ours. Asked once, before anything is changed."""

    @abstractmethod
    def clear(self) -> None:
        """Make it an empty pool, which is not active yet."""

    @abstractmethod
    def is_active(self) -> bool: ...

    @abstractmethod
    def check_ours(self) -> None:
        """Raise Unavailable if the active pool of this name is another's."""

    @abstractmethod
    def activate(self, *, check: bool) -> None:
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

    def __init__(self, name: str, settings: Settings, backing: Backing) -> None:
        super().__init__(name, settings)
        self._backing = backing
        self._block = settings.block_size // SECTOR

    def claim(self) -> None:
        self._backing.claim()

    def clear(self) -> None:
        self._backing.clear()

    def is_active(self) -> bool:
        found = ioctl.status(self.name)
        if found is not None and not found.has_table:
            remove(self.name)  # its maker died between creating and loading
            return False
        if found is not None and found.is_suspended:
            ioctl.resume(self.name)
        return found is not None

    def check_ours(self) -> None:
        """One that lies on something else is of a root that was deleted while in use, whose inode number ours has."""
        metadata, data = ioctl.table(self.name).parameters.split()[:2]
        with self._backing.attached() as lower:  # type: ignore[attr-defined]
            if (metadata, data) != (lower.metadata, lower.data):
                raise Unavailable(
                    f"the thin pool {self.name} is that of a root which was deleted while it was in use: unmount what "
                    f"is on it and take it away with `dmsetup remove {self.name}`"
                )

    def activate(self, *, check: bool) -> None:
        self._backing.grow()
        if check:
            self._check()
        with self._backing.attached() as lower:  # type: ignore[attr-defined]
            ioctl.create(self.name)
            try:
                ioctl.load(self.name, self._table(lower))
                ioctl.resume(self.name)
            except BaseException as error:
                ioctl.remove(self.name)
                if isinstance(error, OSError):
                    raise Unavailable(
                        f"the kernel does not take the thin pool of {self._backing.metadata} ({error.strerror}; dmesg "
                        f"says more): {self.how_to_repair()}"
                    ) from error
                raise

    def deactivate(self) -> bool:
        return ioctl.status(self.name) is None or remove(self.name)

    def grow(self) -> None:
        self._backing.grow()
        with self._backing.attached() as lower:  # type: ignore[attr-defined]
            table = self._table(lower)
            metadata = min(lower.metadata_sectors * SECTOR, THIN_METADATA_MAX_SIZE) // THIN_METADATA_BLOCK_SIZE
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

    def _table(self, lower: Lower) -> Target:
        blocks = lower.data_sectors // self._block
        low_water = int(blocks * self._settings.min_free_percent / 100)
        return Target(
            blocks * self._block,
            "thin-pool",
            f"{lower.metadata} {lower.data} {self._block} {low_water} 2 skip_block_zeroing error_if_no_space",
        )


class GivenPool(Pool):
    """dm.thinpooldev: an administrator (or LVM) brings it up, checks, grows and takes it down."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(os.path.basename(settings.pool_device), settings)

    def claim(self) -> None:
        self.is_active()
        status = self.status()
        if status.transaction_id or status.used_data:
            raise Unavailable(f"the thin pool {self.name} is in use already: dm.thinpooldev must be an empty one")

    def clear(self) -> None:
        pass

    def is_active(self) -> bool:
        if ioctl.status(self.name) is None:
            raise Unavailable(f"there is no thin pool {self.name} (dm.thinpooldev): activate it, or mind its name")
        if (found := ioctl.table(self.name)).type != "thin-pool":
            raise Unavailable(f"dm.thinpooldev={self._settings.pool_device} is no thin pool but {found.type}")
        return True

    def check_ours(self) -> None:
        pass

    def activate(self, *, check: bool) -> None:
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
