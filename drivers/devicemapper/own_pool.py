"""The thin pool of a root on files or block devices of its own: made, checked, grown and taken down by us.

A pool that is full answers writes with ENOSPC at once (error_if_no_space). By default the kernel holds them back for a
minute in the hope that somebody adds space, and then fails them: nobody here adds any unasked, and a container that
hangs tells less than an error. Blocks are not zeroed before they are first written (skip_block_zeroing): each device
holds nothing but a file system, which never reads what it has not written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drivers.devicemapper import blank, direct, ioctl, label, proof, records, thinmeta
from drivers.devicemapper.backing import Backing, Lower
from drivers.devicemapper.filesystem import run
from drivers.devicemapper.ioctl import SECTOR, Target
from drivers.devicemapper.pool import NO_THIN_POOLS, Pool
from drivers.devicemapper.proof import DATA_MARK, METADATA_MARK
from drivers.devicemapper.removal import remove
from drivers.devicemapper.settings import Settings
from drivers.errors import Unavailable
from drivers.graph.store import Store

THIN_METADATA_BLOCK_SIZE = 4096
THIN_METADATA_MAX_SIZE = 255 * 16320 * THIN_METADATA_BLOCK_SIZE  # drivers/md/dm-thin-metadata.h


class OwnPool(Pool):
    """On files or block devices: made, checked, grown and taken down by us."""

    def __init__(self, name: str, settings: Settings, store: Store, backing: Backing) -> None:
        super().__init__(name, settings, store)
        self._backing = backing
        self._block = settings.block_size // SECTOR
        self._uuid = f"fuse-aufs-{store.identity}"  # of the dm device; those of older versions have none

    def is_made(self) -> bool:
        """A pool of an older version, which noted nothing, has no layer in it if it has no base, and is made again."""
        with self._store.read() as transaction:
            return transaction.mark(METADATA_MARK) is not None or records.base(transaction) is not None

    def make(self) -> None:
        """The kernel makes a pool where metadata begin with zeros (__create_persistent_data_objects(),
        dm-thin-metadata.c); its uuid is ours to write, while it is down. Until all of this is done, the next attempt
        begins every step again."""
        if self.is_active():
            self.check_ours()
            self.deactivate()
        identity = bytes.fromhex(self._store.identity)
        with self._store.write() as transaction:
            records.renew_pool(transaction)
        self._backing.clear()
        with self._backing.attached() as lower:
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
        with self._backing.attached() as lower:
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
        with self._backing.attached() as lower:
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

        When it has grown, the label is put at the new end and that is noted, before the pool gets the place where the
        label was.
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
        with self._backing.attached() as lower:
            self._check_same(lower)
            table = self._table(lower, self._labelled(lower))
            metadata = min(lower.metadata.sectors * SECTOR, THIN_METADATA_MAX_SIZE) // THIN_METADATA_BLOCK_SIZE
            status = self.status()
            if table.length <= ioctl.table(self.name).length and metadata <= status.total_metadata:
                return
            # The kernel looks at both sizes as it resumes with a new table (pool_preresume()). If we die in between,
            # is_active() resumes it, for a suspended pool holds up all its devices.
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
        is built on them. Only if they are sound does thin_check take the kernel's mark away."""
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
