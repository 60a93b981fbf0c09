"""Changes of the pool and of the store that are both made or neither, whatever happens between.

    the row says "creating"      │ create_thin or create_snap │ set_transaction_id n n+1 │ the row says "layer", and n+1
    the row says "removing"      │ delete                     │ set_transaction_id n n+1 │ no row, and n+1

Each step is durable before the next: a transaction of the store by sqlite, a message by the pool, which commits its
metadata before it answers (drivers/md/dm-thin.c, pool_message). So whoever comes after a crash finds a row that says
what was meant, and takes a creation back and ends a removal; both may be done again. A pool that is neither at n nor,
with such a row, at n+1 is not the one that the store was kept for.

All of it needs the root's lock, under which each method begins and ends with no change open but one of a dead process.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drivers.devicemapper import records
from drivers.devicemapper.pool import Pool
from drivers.devicemapper.records import ThinDevice
from drivers.devicemapper.removal import PATIENCE
from drivers.devicemapper.thins import MAX_DEVICE, Thins
from drivers.errors import DriverError, Unavailable
from drivers.graph.store import Store
from drivers.graph.transaction import Transaction


class Journal:
    """The store, the pool and its devices, changed together."""

    def __init__(self, store: Store, pool: Pool, thins: Thins, *, discard: bool) -> None:
        self._store = store
        self._pool = pool
        self._thins = thins
        self._discard = discard

    @contextmanager
    def creating(self, sectors: int, message: Callable[[int], None]) -> Iterator[int]:
        """A new thin device of that size, made by `message(its number)`, for the `with` to make something of.

        The `with` block calls `finish` at its end, in the transaction that gives the device its role. If it raises, the
        device is taken back.
        """
        device = self._create(sectors, message)
        try:
            self._advance()
            yield device
        except BaseException:
            try:
                self._take_back(device)
            except (OSError, DriverError):
                pass  # recover() will do it, and the caller should hear of what made it necessary
            raise

    def finish(self, transaction: Transaction) -> None:
        """The store's half of a new transaction id."""
        row = records.pool(transaction)
        assert row is not None
        records.set_transaction_id(transaction, row.transaction_id + 1)

    def _create(self, sectors: int, message: Callable[[int], None]) -> int:
        while True:
            with self._store.write() as transaction:
                device = records.begin(transaction, sectors, MAX_DEVICE)
            try:
                message(device)
                return device
            except OSError as error:
                with self._store.write() as transaction:
                    if error.errno != errno.EEXIST:
                        records.forget(transaction, device)
                        raise
                    # The pool is ours alone, so this is nobody's: leave it to cleanup() and take the next.
                    records.retire(transaction, device)

    def remove(self, device: ThinDevice, *, patience: float = PATIENCE) -> bool:
        """Delete a device whose role is "removing". Whether it is gone; one that is still open is left for later."""
        if not self._thins.deactivate(device.device, patience=patience):
            return False
        if self._discard:
            try:
                self._thins.discard(device.device, device.sectors)
            except (OSError, Unavailable):
                pass  # only space of the disk below is at stake; and it may be gone from the pool already
            self._thins.deactivate(device.device)
        self._thins.delete(device.device)
        self._advance()
        with self._store.write() as transaction:
            records.forget(transaction, device.device)
            self.finish(transaction)
        return True

    def recover(self) -> None:
        """Take back what dead processes were creating, after agree()."""
        with self._store.read() as transaction:
            creating = records.in_role(transaction, "creating")
        if creating:
            self._thins.resume_all()
            for device in creating:
                self._take_back(device.device)

    def _take_back(self, device: int) -> None:
        gone = self._thins.deactivate(device)
        if gone:
            self._thins.delete(device)
        with self._store.write() as transaction:
            if gone:
                records.forget(transaction, device)
            else:
                records.retire(transaction, device)
            records.set_transaction_id(transaction, self._pool.status().transaction_id)

    def _advance(self) -> None:
        with self._store.read() as transaction:
            row = records.pool(transaction)
        assert row is not None
        self._pool.message(f"set_transaction_id {row.transaction_id} {row.transaction_id + 1}")

    def agree(self) -> None:
        """Raise Unavailable if pool and store do not belong together."""
        with self._store.read() as transaction:
            row = records.pool(transaction)
            may_be_ahead = records.in_role(transaction, "creating") or records.in_role(transaction, "removing")
        assert row is not None
        status = self._pool.status()
        if status.failed or status.transaction_id == row.transaction_id:
            return
        if not (may_be_ahead and status.transaction_id == row.transaction_id + 1):
            raise Unavailable(
                f"the thin pool {self._pool.name} is at transaction {status.transaction_id} and the store "
                f"{self._store.path} at {row.transaction_id}: one of them is an older copy; put back the one that "
                "belongs to the other, or make a new root"
            )
        with self._store.write() as transaction:
            records.set_transaction_id(transaction, status.transaction_id)
