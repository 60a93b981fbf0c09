"""The sign by which a union's mount is known in the table of mounts: its type is none, for it can be chosen.

It is in an option of the file system, which every mount of it shows without asking anybody (mountinfo,
fuse_show_options()): the longest read, of which only so much matters that it is long.
"""

from __future__ import annotations

import os

from unionfs.linux.mounts import MountPoint

# Above any read that a kernel asks for (FUSE_MAX_MAX_PAGES, fs/fuse), so that the bits below are free.
_NO_LIMIT = 1 << 30


def new() -> int:
    """A number for one mount, to be its max_read."""
    return _NO_LIMIT | int.from_bytes(os.urandom(4)) % _NO_LIMIT


def of(point: MountPoint) -> str | None:
    """The number, or "" of a union that was mounted without; None if it is not a union's."""
    mark = next((o.removeprefix("max_read=") for o in point.super_options.split(",") if o.startswith("max_read=")), "")
    marked = mark.isdecimal() and _NO_LIMIT <= int(mark) < 2 * _NO_LIMIT
    return mark if point.fstype == "fuse.unionfs" or (marked and point.fstype.startswith("fuse.")) else None
