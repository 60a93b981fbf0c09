"""What a thin pool says of itself on its metadata device, read while the pool is down.

drivers/md/dm-thin-metadata.c: struct thin_disk_superblock, in block 0, little-endian. It has a place for a uuid, which
the kernel clears when it makes a pool and leaves alone after that; thin_repair and thin_restore clear it again.

drivers/md/persistent-data/dm-btree-internal.h: struct node_header, then the keys, then the values; a node is a block.
The blocks of all thin devices are a tree of trees: by the device's number, and by the block's number in it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from drivers.devicemapper import direct

BLOCK_SIZE = 4096
THIN_SUPERBLOCK_MAGIC = 27022010
SUPERBLOCK_CSUM_XOR = 160774
_UUID = slice(16, 32)
_MAGIC_OFFSET = 32
_FIELDS = struct.Struct("<QII Q")  # magic; version, time; trans_id
_ROOTS_OFFSET = 320
_ROOTS = struct.Struct("<QQIIQ")  # data_mapping_root, device_details_root; data_block_size, metadata_block_size; blocks
# struct node_header: csum, flags; blocknr; nr_entries, max_entries, value_size, padding
_NODE = struct.Struct("<IIQIIII")
_INTERNAL_NODE = 1
_VALUE_SIZE = 8
_TIME_BITS = 24  # below the block's number in a value: unpack_block_time()
_DEPTH = 32  # more than a tree of 2^64 blocks has


class PoolSuperblock(NamedTuple):
    """`block_sectors` is the size of the pool's blocks; `blocks` how many of 4 KiB the metadata device has for it."""

    uuid: bytes
    transaction_id: int
    mapping_root: int
    block_sectors: int
    blocks: int


def read(fd: int) -> PoolSuperblock | None:
    """None if there are no metadata of a thin pool on the device. `fd` is as drivers.devicemapper.direct wants it."""
    return parse(direct.read(fd, 0, BLOCK_SIZE))


def parse(block: bytes) -> PoolSuperblock | None:
    if len(block) < BLOCK_SIZE:
        return None
    magic, _, _, transaction_id = _FIELDS.unpack_from(block, _MAGIC_OFFSET)
    mapping_root, _, block_sectors, _, blocks = _ROOTS.unpack_from(block, _ROOTS_OFFSET)
    if magic != THIN_SUPERBLOCK_MAGIC or checksum(block) != int.from_bytes(block[:4], "little"):
        return None
    return PoolSuperblock(block[_UUID], transaction_id, mapping_root, block_sectors, blocks)


def set_uuid(fd: int, uuid: bytes) -> None:
    """Set the uuid of the pool on the device, which is down."""
    block = bytearray(direct.read(fd, 0, BLOCK_SIZE))
    block[_UUID] = uuid
    block[:4] = checksum(block).to_bytes(4, "little")
    direct.write(fd, 0, bytes(block))


def find_block(fd: int, pool: PoolSuperblock, device: int, block: int) -> int | None:
    """Which block of the data device a block of a thin device lies in; None if in none, or there is no such device."""
    root = _look_up(fd, pool.mapping_root, device)
    value = None if root is None else _look_up(fd, root, block)
    return None if value is None else value >> _TIME_BITS


def _look_up(fd: int, root: int, key: int) -> int | None:
    for _ in range(_DEPTH):
        node = direct.read(fd, root * BLOCK_SIZE, BLOCK_SIZE)
        if len(node) < BLOCK_SIZE:
            return None
        _, flags, number, entries, most, value_size, _ = _NODE.unpack_from(node)
        end = _NODE.size + most * (8 + _VALUE_SIZE)
        if number != root or entries > most or value_size != _VALUE_SIZE or end > BLOCK_SIZE:
            return None
        keys = struct.unpack_from(f"<{entries}Q", node, _NODE.size)
        at = max((index for index, found in enumerate(keys) if found <= key), default=-1)
        if at < 0:
            return None
        (root,) = struct.unpack_from("<Q", node, _NODE.size + most * 8 + at * _VALUE_SIZE)
        if not flags & _INTERNAL_NODE:
            return root if keys[at] == key else None
    return None


def checksum(block: bytes | bytearray) -> int:
    """dm_bm_checksum(): CRC-32C of all but the field itself, without the final inversion."""
    crc = 0xFFFFFFFF
    for byte in block[4:BLOCK_SIZE]:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ SUPERBLOCK_CSUM_XOR


def _table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


_CRC32C = _table()
