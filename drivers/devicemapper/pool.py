"""The thin pool of one root, whoever has made it: up and down, and what is wrong with it in a sentence."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import NoReturn

from drivers.devicemapper import ioctl
from drivers.devicemapper.backing import Lower
from drivers.devicemapper.ioctl import Target
from drivers.devicemapper.settings import Settings
from drivers.devicemapper.status import PoolStatus, parse_pool
from drivers.errors import Unavailable
from drivers.graph.store import Store

NO_THIN_POOLS = "this kernel's device-mapper has no thin pools: modprobe dm_thin_pool"


class Pool(ABC):
    """`name` is the dm device's; immutable. Every method but status() needs the root's lock to be held."""

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
        """Whether the pool is certainly ours, without what is in it having to show that."""

    @abstractmethod
    def note_known(self) -> None:
        """Note that what is in the pool has shown it to be ours."""

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
        """Take in the space that has been added below, while the pool is in use."""

    @abstractmethod
    def how_to_grow(self) -> tuple[str, str]: ...

    @abstractmethod
    def how_to_repair(self) -> str: ...

    def uuid(self) -> str:
        """The device-mapper device's; "" for none."""
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
