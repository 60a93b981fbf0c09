"""When the pool is up: from when it is first needed, with its base device, until nothing is mounted any more."""

from __future__ import annotations

from drivers.devicemapper import filesystem, nodes, records
from drivers.devicemapper.ioctl import SECTOR
from drivers.devicemapper.journal import Journal
from drivers.devicemapper.pool import Pool
from drivers.devicemapper.records import ThinDevice
from drivers.devicemapper.removal import PATIENCE
from drivers.devicemapper.settings import DEFAULT_BASE, Settings
from drivers.devicemapper.thins import Thins
from drivers.graph.store import Store


class Upkeep:
    """All of it needs the root's lock."""

    def __init__(self, store: Store, pool: Pool, thins: Thins, journal: Journal, settings: Settings) -> None:
        self._store = store
        self._pool = pool
        self._thins = thins
        self._journal = journal
        self._settings = settings
        # Whether this object has had the pool up, and so sees to it that it goes down. Guarded by the root's lock.
        self.used = False

    def up(self) -> None:
        """See to it that the pool is up and has no change of a dead process in it. The lock is held.

        Raises Unavailable, or OSError, with a sentence.
        """
        if not self._pool.is_made():
            self._pool.make()
        with self._store.read() as transaction:
            row = records.pool(transaction)
        assert row is not None
        was_active = self._pool.is_active()
        if not was_active:
            self._activate(check=row.state == "up")
        elif row.state != "up":
            self._set_state("up")  # whoever activated it died before saying so, or it was given active
        is_known = not was_active or self.used or self._pool.is_known()
        if was_active and not self.used:
            self._pool.check_ours()
            self._pool.grow()
        try:
            status = self._pool.status()
            if (status.needs_check or status.failed) and not self._thins.active() and self._pool.deactivate():
                self._activate(check=True)
                was_active = False
            self._journal.agree()
            if not (was_active and is_known):
                self._check_base()
            if not is_known:
                self._pool.note_known()
            self._journal.recover()
            if not (was_active and self.used):
                self._grow_base()
        except BaseException:
            if not was_active:
                self.down()  # otherwise the next to look would find the pool up and trust it
            raise
        self.used = True

    def _activate(self, *, check: bool) -> None:
        with self._pool.proven() as lower:
            # Before it is up: from now on a pool that is found down without having been shut down has crashed.
            self._set_state("up")
            self._pool.activate(lower, check=check)

    def down(self) -> None:
        """Take everything down that nobody has open. The lock is held."""
        gone = [self._thins.deactivate(device) for device in self._thins.active()]
        if all(gone) and self._pool.deactivate():
            self._set_state("down")
        self.used = False

    def _set_state(self, state: str) -> None:
        with self._store.write() as transaction:
            records.set_pool_state(transaction, state)

    # The base device.

    def base(self) -> ThinDevice:
        """The empty file system that a layer without a parent begins as; made when it is first asked for."""
        with self._store.read() as transaction:
            found = records.base(transaction)
        if found is not None:
            return found
        self._pool.check_space()
        sectors = (self._settings.base_size or DEFAULT_BASE) // SECTOR
        with self._journal.creating(sectors, self._thins.create_thin) as device:
            node = nodes.ensure(self._thins.activate(device, sectors))
            made = filesystem.make(node, self._settings.filesystem, self._settings.mkfs_arguments)
            mapped = self._thins.mapped(device)
            self._thins.deactivate(device)
            with self._store.write() as transaction:
                records.become_base(transaction, device, mapped, made.inodes, made.uuid.hex())
                self._journal.finish(transaction)
        return self.base()

    def _check_base(self) -> None:
        """Raise Unavailable if the pool is not the one with our base."""
        with self._store.read() as transaction:
            found = records.base(transaction)
        if found is None:
            return
        node = nodes.ensure(self._thins.activate(found.device, found.sectors, read_only=True))
        assert found.uuid is not None
        try:
            filesystem.check(node, self._settings.filesystem, bytes.fromhex(found.uuid))
        finally:
            self.put_away(found.device)

    def _grow_base(self) -> None:
        """Grow it to the size that is asked for: a larger copy takes its place, so that there is never a moment without
        a base of one size or the other."""
        with self._store.read() as transaction:
            old = records.base(transaction)
        sectors = (self._settings.base_size or 0) // SECTOR
        if old is None or sectors <= old.sectors:
            return
        self._pool.check_space()
        with self._journal.creating(sectors, lambda device: self._thins.create_snap(device, old.device)) as device:
            node = nodes.ensure(self._thins.activate(device, sectors))
            filesystem.grow(node, self._settings.filesystem, sectors * SECTOR)
            filesystem.sync(node)
            made = filesystem.check(node, self._settings.filesystem)
            mapped = self._thins.mapped(device)
            self._thins.deactivate(device)
            with self._store.write() as transaction:
                records.retire(transaction, old.device)
                records.become_base(transaction, device, mapped, made.inodes, made.uuid.hex())
                self._journal.finish(transaction)
        self.finish_removing()

    # Devices that nobody needs.

    def put_away(self, device: int) -> None:
        """Deactivate a device, unless a snapshot or view needs it."""
        with self._store.read() as transaction:
            if device in records.needed(transaction):
                return
        self._thins.deactivate(device)

    def finish_removing(self, *, patience: float = PATIENCE) -> None:
        """Delete what belongs to no snapshot any more, as far as nobody has it open."""
        with self._store.read() as transaction:
            removing = records.in_role(transaction, "removing")
        for device in removing:
            self._journal.remove(device, patience=patience)
