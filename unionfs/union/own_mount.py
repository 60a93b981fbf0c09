"""A mount of a branch's own: a copy of the one it lies on and of those below it, in no mount namespace.

It goes with the last descriptor. Mounts made or taken away below the branch later do not show in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection

from unionfs.linux import consts, mounts
from unionfs.union.errors import fail

# What the union's own mount allows is said by that mount; these are about what the server itself opens.
_NO_PRIVILEGES = consts.MOUNT_ATTR_NOSUID | consts.MOUNT_ATTR_NODEV | consts.MOUNT_ATTR_NOEXEC
_WHOLE = consts.AT_EMPTY_PATH | consts.AT_RECURSIVE

# Of mount(8), what is about times of access, each with what a mount shows (statvfs(3)).
_SHOWN = {"noatime": os.ST_NOATIME, "nodiratime": os.ST_NODIRATIME, "relatime": os.ST_RELATIME, "strictatime": 0}


def make(seen: int, *, read_only: bool) -> int | None:
    """The tree that begins with the directory `seen`, to be closed by the caller; None where it cannot be had:
    CAP_SYS_ADMIN is missing (EPERM), the mount is of another namespace (EINVAL), Linux is before 5.12 (ENOSYS)."""
    try:
        tree = mounts.open_tree(seen, b"", consts.OPEN_TREE_CLONE | _WHOLE)
    except OSError:
        return None
    try:
        # A copy of a shared mount is one of its peers. Detached trees get nothing from their peers, but for Linux 6.15.
        attributes = _NO_PRIVILEGES | (consts.MOUNT_ATTR_RDONLY if read_only else 0)
        mounts.mount_setattr(tree, b"", _WHOLE, attr_set=attributes, propagation=consts.MS_PRIVATE)
        if read_only:
            # It notes no access, but without this tries to at each read (touch_atime(), fs/inode.c). Apart, because a
            # user namespace may have it locked (mount_namespaces(7)).
            with contextlib.suppress(PermissionError):
                note_access(tree, {"noatime"})
    except OSError:
        os.close(tree)
        return None
    return tree


def note_access(tree: int, flags: Collection[str]) -> None:
    """Note times of access there from now on as a mount with these flags of mount(8) does. They are of the files' own
    file system, whoever reads (touch_atime(), fs/inode.c). Without one of them nothing changes, as in mount(2)."""
    if not _SHOWN.keys() & flags:
        return
    wanted = consts.MOUNT_ATTR_NODIRATIME if "nodiratime" in flags else 0
    if "strictatime" in flags:
        wanted |= consts.MOUNT_ATTR_STRICTATIME
    elif "noatime" in flags:
        wanted |= consts.MOUNT_ATTR_NOATIME
    mounts.mount_setattr(
        tree, b"", _WHOLE, attr_set=wanted, attr_clr=consts.MOUNT_ATTR__ATIME | consts.MOUNT_ATTR_NODIRATIME
    )


def check_access(fd: int, path: bytes, flags: Collection[str]) -> None:
    """The same of the mount that everybody sees, which is not ours to change: EPERM if it is another way there."""
    wished = [flag for flag in _SHOWN if flag in flags]
    shows = os.fstatvfs(fd).f_flag & (os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME)
    wanted = sum(_SHOWN[flag] for flag in wished)
    if wished == ["nodiratime"]:
        wanted |= os.ST_RELATIME
    if wished and wanted != shows:
        fail(errno.EPERM, path, f"{','.join(wished)} takes a mount of the branch's own, which only root can have")
