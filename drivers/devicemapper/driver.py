"""The Snapshotter over thin devices; the package's docstring has the plan."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from drivers.api import Kind, Mount, Usage
from drivers.devicemapper import filesystem, ioctl, nodes, records, superblock
from drivers.devicemapper.backing import Devices, Files
from drivers.devicemapper.given_pool import GivenPool
from drivers.devicemapper.ioctl import SECTOR, Device
from drivers.devicemapper.journal import Journal
from drivers.devicemapper.own_pool import OwnPool
from drivers.devicemapper.pool import Pool
from drivers.devicemapper.records import ThinDevice
from drivers.devicemapper.settings import DEFAULT_BASE, FIXED, RENAMED, parse_settings
from drivers.devicemapper.thins import Thins
from drivers.devicemapper.upkeep import Upkeep
from drivers.disk.locks import locked
from drivers.disk.ownership import own_directory
from drivers.disk.sizes import show_size
from drivers.errors import DriverError, InUse, NotFound, NotSupported, Unavailable
from drivers.graph.snapshotter import GraphSnapshotter, NewSnapshot
from drivers.graph.store import STORE, Store
from drivers.graph.transaction import Record, Transaction
from unionfs.linux.mounts import mountinfo


class Driver(GraphSnapshotter):
    """Thread-safe: what changes is changed under the root's lock, which threads wait for as processes do."""

    NAME = "devicemapper"
    FIXED = FIXED

    def __init__(self, root: str, given: Mapping[str, str]) -> None:
        settings = parse_settings(given)  # first: what is refused must not be kept
        self.root = own_directory(root)
        files = Files(self.root, settings)
        files.check_wanted()
        store = Store(
            os.path.join(self.root, STORE),
            self.NAME,
            records.SCHEMA,
            options=given,
            fixed=self.FIXED,
            renamed=RENAMED,
            agree=parse_settings,
            has_content=files.exists,
        )
        super().__init__(store)
        try:
            self._settings = parse_settings(store.options)
            self._check_base_size()
            status = os.stat(self.root)
        except BaseException:
            store.close()
            raise
        # As docker's: two roots never have the same, and one root has the same by all of its names.
        where = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}-{status.st_ino}"
        prefix = f"fuse-aufs-{where}-"
        if self._settings.pool_device:
            self._pool: Pool = GivenPool(self._settings, store)
        else:
            backing = Devices(self._settings) if self._settings.data_device else Files(self.root, self._settings)
            self._pool = OwnPool(f"{prefix}pool", self._settings, store, backing)
        self._thins = Thins(self._pool, prefix)
        self._journal = Journal(store, self._pool, self._thins, discard=self._settings.discard_deleted)
        self._upkeep = Upkeep(store, self._pool, self._thins, self._journal, self._settings)

    def _check_base_size(self) -> None:
        """Refuse a base that is smaller than the one that layers have, and keep the size of that one."""
        with self._store.read() as transaction:
            base = records.base(transaction)
        wanted = self._settings.base_size
        if base is None or wanted is None or wanted >= base.sectors * SECTOR:
            return
        size = show_size(base.sectors * SECTOR)
        with self._store.write() as transaction:
            transaction.execute("UPDATE options SET value = ? WHERE name = 'dm.basesize'", (size,))
        raise Unavailable(
            f"dm.basesize={show_size(wanted)} is less than the {size} that the layers here have: it can only be raised"
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(os.path.join(self.root, "lock")):
            yield

    # The hooks of GraphSnapshotter.

    def _check_quota(self, quota: int) -> None:
        """Any size that the file system of the layers can grow to will do; _origin() knows more."""

    def _create(self, new: NewSnapshot) -> list[Mount]:
        self._parent_line(new)  # its refusals need no pool
        with self._locked():
            line = self._parent_line(new)
            self._upkeep.up()
            origin = self._origin(line)
            if new.kind is Kind.VIEW:
                mounts = self._show(origin, Kind.VIEW)
                try:
                    with self._store.write() as transaction:
                        self._add_row(transaction, new, line)
                except BaseException:
                    self._upkeep.put_away(origin.device)
                    raise
                return mounts
            return self._create_active(new, line, origin)

    def _create_active(self, new: NewSnapshot, line: list[int], origin: ThinDevice) -> list[Mount]:
        size = origin.sectors * SECTOR
        if 0 < new.quota < size:
            raise NotSupported(
                f"size={show_size(new.quota)} is less than the {show_size(size)} that the file system of the layers "
                "has (dm.basesize): a container's can only be larger"
            )
        # Layers from before dm.basesize was raised have the size of then, and what is made on them need not.
        sectors = max((new.quota or self._settings.base_size or 0) // SECTOR, origin.sectors)
        self._pool.check_space()
        with self._journal.creating(sectors, lambda device: self._thins.create_snap(device, origin.device)) as device:
            active = self._thins.activate(device, sectors)
            if sectors > origin.sectors:
                filesystem.grow(nodes.ensure(active), self._settings.filesystem, sectors * SECTOR)
            with self._store.write() as transaction:
                number = self._add_row(transaction, new, line)
                records.become_layer(transaction, device, number)
                self._journal.finish(transaction)
        return self._mount(active, Kind.ACTIVE)

    def _mounts(self, record: Record, line: Sequence[int]) -> list[Mount]:
        with self._locked():
            self._upkeep.up()
            if record.info.kind is Kind.VIEW:
                return self._show(self._origin(line), Kind.VIEW)
            return self._show(self._device(record), Kind.ACTIVE)

    def _check_idle(self, record: Record) -> None:
        """Raise InUse if it is mounted where we can see it. Elsewhere, in a namespace into which a mount has leaked,
        nobody can be told to unmount it: then a commit says InUse, and a removal is put off until it is closed
        there."""
        with self._store.read() as transaction:
            device = records.of_snapshot(transaction, record.id)
        active = ioctl.status(self._thins.name(device.device)) if device else None
        if active is None or not active.open_count:
            return
        for point in mountinfo():
            if point.device == active.number:
                raise InUse(f"{record.info.name} is mounted at {point.target}")

    def _settle(self, record: Record) -> None:
        with self._locked():
            self._upkeep.up()
            device = self._device(record)
            active = self._thins.activate(device.device, device.sectors)
            if not self._thins.is_closed(device.device):
                raise InUse(f"{record.info.name} is still in use: {active.node} is open or mounted somewhere")
            filesystem.settle(nodes.ensure(active), self._settings.filesystem)

    def _measure(self, record: Record) -> Usage:
        """The blocks that it has beyond its parent's: those that it wrote over are counted with the parent."""
        if record.info.kind is Kind.VIEW:
            return Usage(0, 0)
        with self._locked():
            self._upkeep.up()
            mapped, inodes = self._totals(self._device(record))
            with self._store.read() as transaction:
                line = transaction.ancestors(record)
            below = self._origin(line)
        assert below.mapped is not None and below.inodes is not None
        own_root = 0 if line else 1
        return Usage(max(0, inodes - below.inodes) + own_root, max(0, mapped - below.mapped))

    def _make_durable(self, record: Record) -> None:
        with self._locked():
            self._upkeep.up()
            device = self._device(record)
            filesystem.sync(nodes.ensure(self._thins.activate(device.device, device.sectors)))

    def _commit_with(self, transaction: Transaction, record: Record) -> None:
        device = records.of_snapshot(transaction, record.id)
        assert device is not None
        records.measured(transaction, device.device, *self._totals(device))

    def _committed(self, record: Record) -> None:
        with self._locked():
            with self._store.read() as transaction:
                device = records.of_snapshot(transaction, record.id)
            if device is not None:
                self._upkeep.put_away(device.device)

    def _remove_with(self, transaction: Transaction, record: Record) -> None:
        device = records.of_snapshot(transaction, record.id)
        if device is not None:
            records.retire(transaction, device.device)

    def _discard(self, record: Record) -> None:
        with self._locked():
            self._upkeep.up()
            if record.info.kind is Kind.VIEW:
                with self._store.read() as transaction:
                    unneeded = self._thins.active() - records.needed(transaction)
                for device in unneeded:
                    self._upkeep.put_away(device)
            self._upkeep.finish_removing()

    def how_to_make_room(self) -> str:
        size = show_size(self._settings.base_size or DEFAULT_BASE)
        return (
            f"layers and containers have {size} each (--storage-opt dm.basesize=…, which can be raised), and what the "
            f"thin pool has left is for all of them: remove containers or images, or {self._pool.how_to_grow()[0]}"
        )

    def cleanup(self) -> None:
        self._store.check_whole()
        with self._locked():
            with self._store.read() as transaction:
                pending = records.in_role(transaction, "creating") or records.in_role(transaction, "removing")
                needed = records.needed(transaction)
                exists = records.pool(transaction) is not None
            if not exists:
                return
            active = self._thins.active()
            if not (pending or active or ioctl.status(self._pool.name)):
                return
            self._upkeep.up()
            self._thins.resume_all()
            for device in active - needed:
                self._thins.deactivate(device, patience=0)
            self._upkeep.finish_removing(patience=0)

    def close(self) -> None:
        try:
            if self._upkeep.used:
                with self._locked():
                    with self._store.read() as transaction:
                        idle = not records.needed(transaction)
                    if idle:
                        self._upkeep.down()
        except (DriverError, OSError):
            pass  # what is up stays so, and whoever closes next tries again
        finally:
            super().close()

    def check_invariants(self) -> None:
        super().check_invariants()
        with self._store.read() as transaction:
            needed, pool = records.needed(transaction), records.pool(transaction)
            assert records.in_role(transaction, "creating") == records.in_role(transaction, "removing") == []
            for record in transaction.walk():
                device = records.of_snapshot(transaction, record.id)
                assert (device is None) == (record.info.kind is Kind.VIEW), record
                if device is not None and record.info.kind is Kind.COMMITTED:
                    assert device.mapped is not None and device.inodes is not None, device
        assert self._thins.active() <= needed, f"active {self._thins.active()}, needed {needed}"
        if ioctl.status(self._pool.name) is not None:
            assert pool is not None and self._pool.status().transaction_id == pool.transaction_id, pool

    # One device.

    def _device(self, record: Record) -> ThinDevice:
        with self._store.read() as transaction:
            device = records.of_snapshot(transaction, record.id)
        if device is None:
            raise NotFound(f"{record.info.name} was removed meanwhile")
        return device

    def _origin(self, line: Sequence[int]) -> ThinDevice:
        """What a snapshot on `line` begins as."""
        if not line:
            return self._upkeep.base()
        with self._store.read() as transaction:
            device = records.of_snapshot(transaction, line[0])
        if device is None:
            raise NotFound("the parent was removed meanwhile")
        return device

    def _show(self, device: ThinDevice, kind: Kind) -> list[Mount]:
        return self._mount(
            self._thins.activate(device.device, device.sectors, read_only=kind is Kind.VIEW), kind
        )

    def _mount(self, active: Device, kind: Kind) -> list[Mount]:
        settings = self._settings
        given = (*filesystem.MOUNT_OPTIONS[settings.filesystem], *settings.mount_options)
        if kind is Kind.VIEW:
            given = ("ro", *given)
        elif settings.discard_deleted and not {"discard", "nodiscard"} & set(given):
            given = (*given, "discard")
        return [Mount(settings.filesystem, nodes.ensure(active), given)]

    def _totals(self, device: ThinDevice) -> tuple[int, int]:
        """Bytes mapped and inodes used, the parent's among them."""
        active = self._thins.activate(device.device, device.sectors)
        found = superblock.read(nodes.ensure(active))
        return self._thins.mapped(device.device), found.inodes if found else 0
