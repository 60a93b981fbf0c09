"""Our name at the end of a disk that a pool lies on: whose pool, and what the disk is in it.

The pool's table leaves the last 4 KiB of the data device out. On the metadata device they belong to the pool, which
uses them last of all; there the label only says, until the pool is made, that we may go on making it. After that the
uuid in the pool's superblock says whose it is.
"""

from __future__ import annotations

import struct

from drivers.devicemapper import direct
from drivers.devicemapper.ioctl import SECTOR

_LABEL = struct.Struct("=16s16s16s")  # magic, role, identity
_MAGIC = b"fuse-aufs pool 1"


def write(fd: int, sectors: int, role: str, identity: bytes) -> None:
    """Write it on a disk of that size, and return when it is there. `fd` is as drivers.devicemapper.direct wants it."""
    content = _LABEL.pack(_MAGIC, role.encode(), identity)
    direct.write(fd, usable(sectors) * SECTOR, content.ljust(direct.BLOCK, b"\0"))


def is_there(fd: int, sectors: int, role: str, identity: bytes) -> bool:
    """Whether a disk had this label when it had that size."""
    content = direct.read(fd, usable(sectors) * SECTOR, direct.BLOCK)
    wanted = _LABEL.pack(_MAGIC, role.encode(), identity)
    return content.startswith(wanted)


def usable(sectors: int) -> int:
    """The sectors before the label."""
    whole = direct.BLOCK // SECTOR
    return max(sectors // whole - 1, 0) * whole
