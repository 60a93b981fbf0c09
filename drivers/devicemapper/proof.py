"""Whether what a pool lies on is what it lay on last time, found out before the kernel is given it.

Names of disks change, and disks are exchanged. What is not the pool's would be written over: the kernel makes a new
pool on metadata that begin with zeros, and layers are written wherever the metadata say. So each is asked who it is:

    metadata    the uuid in the pool's superblock is the store's identity, and its transaction id the store's, and not
                that of an older copy
    data        has the label of the store, in the place where it was last put

Metadata without a uuid (of an older version, or repaired) are proven by what they lead to: the block of the data device
that they give as the base's first holds the file system with the base's uuid.
"""

from __future__ import annotations

from typing import NamedTuple

from drivers.devicemapper import direct, label, records, superblock, thinmeta
from drivers.devicemapper.backing import Disk, Lower
from drivers.devicemapper.ioctl import SECTOR
from drivers.devicemapper.thinmeta import PoolSuperblock
from drivers.disk.sizes import show_size
from drivers.errors import Unavailable
from drivers.graph.store import Store

# What the store notes: that the superblock has the identity, and the size in sectors of the data device with the label.
METADATA_MARK, DATA_MARK = "thin-pool metadata", "thin-pool data"


class Expected(NamedTuple):
    """What the store knows of the pool. `data_sectors` is 0 if the data device has no label."""

    where: str
    identity: bytes
    transaction_ids: frozenset[int]
    block_sectors: int
    data_sectors: int
    base: records.ThinDevice | None


def expected(store: Store, block_sectors: int) -> Expected:
    with store.read() as transaction:
        pool = records.pool(transaction)
        assert pool is not None
        is_between = records.in_role(transaction, "creating") or records.in_role(transaction, "removing")
        return Expected(
            store.path,
            bytes.fromhex(store.identity),
            frozenset({pool.transaction_id, pool.transaction_id + bool(is_between)}),
            block_sectors,
            int(transaction.mark(DATA_MARK) or 0),
            records.base(transaction),
        )


def check(lower: Lower, wanted: Expected, how_to_repair: str) -> None:
    """Raise Unavailable unless both are the pool's. Metadata that were proven by their content get the uuid."""
    metadata = thinmeta.read(lower.metadata.fd)
    if metadata is None:
        raise _foreign(lower.metadata, wanted, f"has no metadata of a thin pool; if they are damaged, {how_to_repair}")
    if metadata.uuid not in (wanted.identity, bytes(16)):
        raise _foreign(lower.metadata, wanted, "has the metadata of another thin pool")
    if metadata.block_sectors != wanted.block_sectors:
        raise _foreign(lower.metadata, wanted, "has the metadata of a thin pool with blocks of another size")
    if metadata.blocks * thinmeta.BLOCK_SIZE > lower.metadata.sectors * SECTOR:
        raise _foreign(lower.metadata, wanted, "is smaller than it was")
    if metadata.transaction_id not in wanted.transaction_ids:
        raise Unavailable(
            f"the thin pool on {lower.metadata.path} is at transaction {metadata.transaction_id} and the store "
            f"{wanted.where} at {min(wanted.transaction_ids)}: one of them is an older copy; put back the one that "
            "belongs to the other, or make a new root"
        )
    _check_data(lower.data, wanted)
    if metadata.uuid != wanted.identity or not wanted.data_sectors:
        if not _leads_to_base(lower, wanted, metadata):
            raise _foreign(lower.metadata, wanted, f"does not have the metadata of what is on {lower.data.path}")
        if metadata.uuid != wanted.identity:
            thinmeta.set_uuid(lower.metadata.fd, wanted.identity)


def _check_data(disk: Disk, wanted: Expected) -> None:
    if not wanted.data_sectors:
        return
    if disk.sectors < wanted.data_sectors:
        size = show_size(wanted.data_sectors * SECTOR)
        raise _foreign(disk, wanted, f"is smaller than the {size} that it had")
    if not label.is_there(disk.fd, wanted.data_sectors, disk.role, wanted.identity):
        raise _foreign(disk, wanted, "does not have the label of this root")


def _leads_to_base(lower: Lower, wanted: Expected, metadata: PoolSuperblock) -> bool:
    if wanted.base is None:
        return False
    block = thinmeta.find_block(lower.metadata.fd, metadata, wanted.base.device, 0)
    if block is None:
        return False
    head = direct.read(lower.data.fd, block * wanted.block_sectors * SECTOR, direct.BLOCK)
    found = superblock.parse(head)
    return found is not None and found.uuid.hex() == wanted.base.uuid


def _foreign(disk: Disk, wanted: Expected, how: str) -> Unavailable:
    return Unavailable(
        f"{disk.path} is not the {disk.role} device that the layers of {wanted.where} are on: it {how}; nothing was "
        "changed: put back the one that belongs here, and mind the names of the disks"
    )
