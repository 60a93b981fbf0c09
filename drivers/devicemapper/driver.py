"""The Snapshotter over thin devices; see the package for the plan of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from drivers import loop
from drivers.api import Kind, Probe, Usage
from drivers.devicemapper import filesystem, ioctl, nodes, options, records, superblock
from drivers.devicemapper.backing import Devices, Files
from drivers.devicemapper.ioctl import SECTOR, Device
from drivers.devicemapper.journal import Journal
from drivers.devicemapper.options import DEFAULT_BASE
from drivers.devicemapper.pool import GivenPool, OwnPool, Pool
from drivers.devicemapper.records import ThinDevice
from drivers.devicemapper.thins import Thins
from drivers.directories import STORE
from drivers.errors import DriverError, InUse, NotFound, NotSupported, Unavailable
from drivers.graph import GraphSnapshotter, Wish
from drivers.locks import locked
from drivers.metadata import Record, Store, Transaction
from drivers.mounts import Mount
from drivers.sizes import show_size
from unionfs.linux.mounts import mountinfo


class Driver(GraphSnapshotter):
    """Thread-safe: what changes is changed under the root's lock, which threads wait for as processes do."""

    NAME = "devicemapper"
    FIXED = options.FIXED

    def __init__(self, root: str, given: Mapping[str, str]) -> None:
        options.parse(given)  # before they are kept
        self.root = os.path.realpath(root)
        os.makedirs(self.root, 0o700, exist_ok=True)
        os.chmod(self.root, 0o700)  # makedirs obeys the umask, and the directory may have been there
        files = os.path.join(self.root, "thin-pool", "metadata")
        store = Store(
            os.path.join(self.root, STORE),
            self.NAME,
            records.SCHEMA,
            options=given,
            fixed=self.FIXED,
            has_content=lambda: os.path.exists(files),
        )
        super().__init__(store)
        try:
            self._settings = options.parse(store.options)
            status = os.stat(self.root)
        except BaseException:
            store.close()
            raise
        # As docker's: two roots never have the same, and one root has the same by all of its names.
        where = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}-{status.st_ino}"
        prefix = f"fuse-aufs-{where}-"
        if self._settings.pool_device:
            self._pool: Pool = GivenPool(self._settings)
        else:
            backing = Devices(self._settings) if self._settings.data_device else Files(self.root, self._settings)
            self._pool = OwnPool(f"{prefix}pool", self._settings, backing)
        self._thins = Thins(self._pool, prefix)
        self._journal = Journal(store, self._pool, self._thins, discard=self._settings.discard_deleted)
        # Guarded by the root's lock: whether this object has had the pool up, and so looks after it in close().
        self._used = False

    # The pool.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(os.path.join(self.root, "lock")):
            yield

    def _up(self) -> None:
        """See to it that the pool is up and has no change of a dead process in it. The lock is held.

        Raises Unavailable, or OSError, with a sentence.
        """
        with self._store.read() as transaction:
            row = records.pool(transaction)
        if row is None:
            self._pool.claim()
            with self._store.write() as transaction:
                records.add_pool(transaction)
        state = "new" if row is None else row.state
        was_active = self._pool.is_active()
        if not was_active:
            self._activate(state)
        elif state != "up":
            self._set_state("up")  # who activated it died before saying so, or it was given active
        if was_active and not self._used:
            self._pool.check_ours()
            self._pool.grow()
        status = self._pool.status()
        if (status.needs_check or status.failed) and not self._thins.active() and self._pool.deactivate():
            self._pool.activate(check=True)
            was_active = False
        self._journal.recover()
        self._used = True
        if not was_active:
            try:
                self._check_base()
            except BaseException:
                self._down()  # or the next to look would find the pool up and believe it
                raise

    def _activate(self, state: str) -> None:
        if state == "new":
            self._pool.clear()
            self._pool.activate(check=False)
        # Before it is up: from now on a pool that is found down without having been shut down has crashed.
        self._set_state("up")
        if state != "new":
            self._pool.activate(check=state == "up")

    def _down(self) -> None:
        """Take everything down that nobody has open. The lock is held."""
        gone = [self._thins.deactivate(device) for device in self._thins.active()]
        if all(gone) and self._pool.deactivate():
            self._set_state("down")

    def _set_state(self, state: str) -> None:
        with self._store.write() as transaction:
            records.set_pool_state(transaction, state)

    # The base device.

    def _base(self) -> ThinDevice:
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
        return self._base()

    def _check_base(self) -> None:
        """When the pool has come up: that it is the one with our base, and that the base has the size asked for."""
        with self._store.read() as transaction:
            found = records.base(transaction)
        if found is None:
            return
        sectors = (self._settings.base_size or 0) // SECTOR
        if 0 < sectors < found.sectors:
            raise Unavailable(
                f"dm.basesize={show_size(sectors * SECTOR)} is less than the {show_size(found.sectors * SECTOR)} that "
                "the layers here have, and can only be raised"
            )
        node = nodes.ensure(self._thins.activate(found.device, found.sectors, read_only=True))
        assert found.uuid is not None
        filesystem.check(node, self._settings.filesystem, bytes.fromhex(found.uuid))
        self._put_away(found.device)
        if sectors > found.sectors:
            self._grow_base(found, sectors)

    def _grow_base(self, old: ThinDevice, sectors: int) -> None:
        """A larger copy takes the base's place, so that there is no moment at which it is neither."""
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
        self._finish_removing()

    # The hooks of GraphSnapshotter.

    def _check_quota(self, quota: int) -> None:
        """Any will do that the file system of the layers can grow to; _origin() knows more."""

    def _create(self, wish: Wish) -> list[Mount]:
        self._parent_line(wish)  # its refusals need no pool
        with self._locked():
            line = self._parent_line(wish)
            self._up()
            origin = self._origin(line)
            if wish.kind is Kind.VIEW:
                mounts = self._show(origin, Kind.VIEW)
                try:
                    with self._store.write() as transaction:
                        self._add_row(transaction, wish, line)
                except BaseException:
                    self._put_away(origin.device)
                    raise
                return mounts
            return self._create_active(wish, line, origin)

    def _create_active(self, wish: Wish, line: list[int], origin: ThinDevice) -> list[Mount]:
        size = origin.sectors * SECTOR
        if 0 < wish.quota < size:
            raise NotSupported(
                f"size={show_size(wish.quota)} is less than the {show_size(size)} that the file system of the layers "
                "has (dm.basesize): a container's can only be larger"
            )
        sectors = max(wish.quota // SECTOR, origin.sectors)
        self._pool.check_space()
        with self._journal.creating(sectors, lambda device: self._thins.create_snap(device, origin.device)) as device:
            active = self._thins.activate(device, sectors)
            if sectors > origin.sectors:
                filesystem.grow(nodes.ensure(active), self._settings.filesystem, sectors * SECTOR)
            with self._store.write() as transaction:
                number = self._add_row(transaction, wish, line)
                records.become_layer(transaction, device, number)
                self._journal.finish(transaction)
        return self._mount(active, Kind.ACTIVE)

    def _mounts(self, record: Record, line: Sequence[int]) -> list[Mount]:
        with self._locked():
            self._up()
            if record.info.kind is Kind.VIEW:
                return self._show(self._origin(line), Kind.VIEW)
            return self._show(self._device(record), Kind.ACTIVE)

    def _check_idle(self, record: Record) -> None:
        """InUse if it is mounted where we see it. Elsewhere, in a namespace that a mount has leaked into, nobody can be
        told to unmount it: then a commit says InUse, and a removal is put off until it is closed there."""
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
            self._up()
            device = self._device(record)
            active = self._thins.activate(device.device, device.sectors)
            if not self._thins.is_closed(device.device):
                raise InUse(f"{record.info.name} is still in use: {active.node} is open or mounted somewhere")
            filesystem.settle(nodes.ensure(active), self._settings.filesystem)

    def _measure(self, record: Record) -> Usage:
        """The blocks that it has more than its parent: what it wrote over is counted with the parent."""
        if record.info.kind is Kind.VIEW:
            return Usage(0, 0)
        with self._locked():
            self._up()
            mapped, inodes = self._totals(self._device(record))
            with self._store.read() as transaction:
                line = transaction.ancestors(record)
            below = self._origin(line)
        assert below.mapped is not None and below.inodes is not None
        own_root = 0 if line else 1
        return Usage(max(0, inodes - below.inodes) + own_root, max(0, mapped - below.mapped))

    def _make_durable(self, record: Record) -> None:
        with self._locked():
            self._up()
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
                self._put_away(device.device)

    def _remove_with(self, transaction: Transaction, record: Record) -> None:
        device = records.of_snapshot(transaction, record.id)
        if device is not None:
            records.retire(transaction, device.device)

    def _discard(self, record: Record) -> None:
        with self._locked():
            self._up()
            if record.info.kind is Kind.VIEW:
                with self._store.read() as transaction:
                    unneeded = self._thins.active() - records.needed(transaction)
                for device in unneeded:
                    self._put_away(device)
            self._finish_removing()

    def cleanup(self) -> None:
        self._store.check_whole()
        with self._locked():
            with self._store.read() as transaction:
                pending = records.in_role(transaction, "creating") or records.in_role(transaction, "removing")
                needed = records.needed(transaction)
                exists = records.pool(transaction) is not None
            active = self._thins.active()
            if not exists or not (pending or active):
                return
            self._up()
            self._thins.resume_all()
            for device in active - needed:
                self._thins.deactivate(device, patience=0)
            self._finish_removing(patience=0)

    def close(self) -> None:
        try:
            if self._used:
                with self._locked():
                    with self._store.read() as transaction:
                        idle = not records.needed(transaction)
                    if idle:
                        self._down()
                    self._used = False
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
            return self._base()
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

    def _put_away(self, device: int) -> None:
        """Deactivate a device, unless a snapshot or view needs it."""
        with self._store.read() as transaction:
            if device in records.needed(transaction):
                return
        self._thins.deactivate(device)

    def _finish_removing(self, **patience: float) -> None:
        with self._store.read() as transaction:
            removing = records.in_role(transaction, "removing")
        for device in removing:
            self._journal.remove(device, **patience)


def probe(directory: str, given: Mapping[str, str]) -> Probe:
    """Whether the kernel has thin pools, and the programs are there that making one takes."""
    settings = options.parse(given)
    try:
        os.close(ioctl.open_control())
    except OSError as error:
        return Probe(False, f"{error.strerror}")
    if ioctl.target_version("thin-pool") is None:
        return Probe(False, "this kernel's device-mapper has no thin pools: modprobe dm_thin_pool")
    for program, package in (
        (f"mkfs.{settings.filesystem}", filesystem.PACKAGE[settings.filesystem]),
        ("thin_check", "thin-provisioning-tools"),
    ):
        if filesystem.program(program) is None:
            return Probe(False, f"{program} is not installed: apt-get install {package}")
    if settings.pool_device:
        return Probe(True, f"thin devices in the pool {settings.pool_device}")
    if settings.data_device:
        return Probe(True, f"a thin pool on {settings.data_device}")
    path = os.path.join(directory, "loop")
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    try:
        with loop.attached(path):
            pass
    except Unavailable as error:
        return Probe(False, str(error))
    return Probe(True, "a thin pool on files; for much writing give it block devices (dm.datadev, dm.metadatadev)")
