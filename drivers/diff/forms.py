"""How a directory says what is not in it.

    None                 a tree as it is mounted: what is not listed is not there
    "aufs"               a directory of differences of fuse-aufs: whatever its union takes for a whiteout or an opaque
                         directory (unionfs.union.form), which it lets nobody make through the mount
    "overlay"            one of overlay2: character devices 0:0 and trusted.overlay.opaque
    "overlay-userxattr"  the same with user.overlay.opaque, in a user namespace

Nothing that a container may write has a meaning here. Through an overlay it may write `.wh.` names, and without
userxattr user.overlay.* attributes: to overlayfs they are names and attributes like any other.

In each form `.wh.` names and devices 0:0 are not entries: in a layer's archive they could only be read as whiteouts. A
tree has them when a container made them on a driver that does not refuse them; they are left out, as sockets are.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from drivers.api import Form
from drivers.archive import marks
from drivers.disk.trees import entries
from unionfs.union.form import PREFIX, is_long, is_reserved, whiteout_of


class Listing(NamedTuple):
    """The entries of a directory by name, and what it hides of the directory below: names, or all of them. Where a
    whiteout does not tell the name, its own is among the `hidden`.

    `sockets` are among the names.
    """

    names: set[bytes]
    sockets: set[bytes]
    hidden: set[bytes]
    opaque: bool

    def hides(self, below: set[bytes]) -> set[bytes]:
        """Those of the names in the directory below that the whiteouts are of."""
        return below & self.hidden | {name for name in below if is_long(name) and whiteout_of(name) in self.hidden}


def read(fd: int, form: Form | None) -> Listing:
    """The directory `fd`, which stands in a tree of the form `form`."""
    names, sockets, hidden = set(), set(), set()
    for entry in entries(fd):
        name = entry.name
        if is_reserved(name):
            if form == "aufs":
                told = name.removeprefix(PREFIX)
                hidden.add(name if is_reserved(told) else told)
            continue
        kind, device = _special(entry)
        if (kind, device) == (stat.S_IFCHR, 0):
            hidden.add(name)
            continue
        names.add(name)
        if kind == stat.S_IFSOCK:
            sockets.add(name)
    if form is None:
        return Listing(names, sockets, set(), True)
    return Listing(names, sockets, hidden, marks.is_opaque(fd, form))


def _special(entry: os.DirEntry[bytes]) -> tuple[int, int]:
    """The type and the device number of what is not a file, directory or link; 0 and 0 for those, which are not looked
    at: most entries are one of them, and readdir(3) says so."""
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return 0, 0
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0, 0
    return stat.S_IFMT(status.st_mode), status.st_rdev
