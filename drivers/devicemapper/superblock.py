"""What an ext4 or XFS file system says of itself in its superblock, read from its device, mounted or not.

ext4: Documentation/filesystems/ext4/super.rst, little-endian, at byte 1024. XFS: fs/xfs/libxfs/xfs_format.h, struct
xfs_dsb, big-endian, at byte 0.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from drivers.devicemapper import direct

_SIZE = 4096
_EXT4_START, _EXT4_MAGIC = 1024, 0xEF53
EXT4_FEATURE_INCOMPAT_RECOVER = 0x4
EXT4_FEATURE_INCOMPAT_64BIT = 0x80


class Superblock(NamedTuple):
    """`size` is the file system's, in bytes; `inodes` those in use, its reserved ones among them. `needs_recovery`:
    its log holds what is not in place yet (None where only mounting tells, as for XFS). `imaxpct` is XFS's own."""

    type: str
    uuid: bytes
    block_size: int
    size: int
    inodes: int
    needs_recovery: bool | None
    imaxpct: int = 0


def read(node: str) -> Superblock | None:
    """None if there is neither file system on the device.

    Read past the page cache, for XFS writes past it; what ext4 has in the cache is written first
    (filemap_write_and_wait).
    """
    fd = os.open(node, os.O_RDONLY | direct.FLAGS)
    try:
        return parse(direct.read(fd, 0, _SIZE))
    finally:
        os.close(fd)


def parse(head: bytes) -> Superblock | None:
    """The superblock in the first 4 KiB of a device; None if there is none, or `head` is shorter."""
    if len(head) < _SIZE:
        return None
    if head[:4] == b"XFSB":
        block_size, blocks = struct.unpack_from(">IQ", head, 4)
        icount, ifree = struct.unpack_from(">QQ", head, 128)
        return Superblock("xfs", head[32:48], block_size, blocks * block_size, icount - ifree, None, head[127])
    ext4 = head[_EXT4_START:]
    if struct.unpack_from("<H", ext4, 56)[0] != _EXT4_MAGIC:
        return None
    inodes, blocks = struct.unpack_from("<II", ext4)
    free_inodes, _, log_block_size = struct.unpack_from("<III", ext4, 16)
    incompat = struct.unpack_from("<I", ext4, 96)[0]
    if incompat & EXT4_FEATURE_INCOMPAT_64BIT:
        blocks |= struct.unpack_from("<I", ext4, 0x150)[0] << 32
    block_size = 1024 << log_block_size
    return Superblock(
        "ext4",
        ext4[104:120],
        block_size,
        blocks * block_size,
        inodes - free_inodes,
        bool(incompat & EXT4_FEATURE_INCOMPAT_RECOVER),
    )
