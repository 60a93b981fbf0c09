"""The thin pool that an administrator has given (dm.thinpooldev)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from drivers.devicemapper import ioctl, records
from drivers.devicemapper.backing import Lower
from drivers.devicemapper.pool import Pool
from drivers.devicemapper.settings import Settings
from drivers.errors import Unavailable
from drivers.graph.store import Store

GIVEN_MARK = "thin-pool given"  # what the store notes of the pool: its uuid, as device-mapper has it


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
            raise Unavailable(f"dm.thinpooldev={self._settings.pool_device} is not a thin pool but {found.type}")
        return True

    def check_ours(self) -> None:
        """Where the uuid is not the one noted last time, what is in the pool decides. An empty one may be any; one that
        is not empty, when we have no base in it yet, is another's, whose devices have numbers that ours would get."""
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
