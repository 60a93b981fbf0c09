"""A tree at a place of the file system, and away from there again.

For whoever wants a tree to have a name; drivers.mounts.tree is for those that need none. Needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from drivers.api import Mount
from drivers.errors import InUse
from drivers.mounts.tree import open_tree
from unionfs.linux import consts
from unionfs.linux import mounts as sys_mounts
from unionfs.transport import device
from unionfs.transport.unmount import unmount as unmount_union


def mount_all(mounts: Sequence[Mount], target: str) -> None:
    """Mount each of `mounts`, in order, on the directory `target`. On failure what was mounted is unmounted again."""
    done = 0
    try:
        for mount in mounts:
            tree = open_tree([mount])
            try:
                tree.attach(target)
            finally:
                tree.leave()
            done += 1
    except BaseException:
        for _ in range(done):
            _unmount_top(os.path.realpath(target))
        raise


def unmount_all(target: str) -> None:
    """Unmount everything that is stacked on `target`; nothing mounted, or no such directory, is fine.

    Returns when the servers behind unionfs mounts have ended, so their branches are closed and complete.
    Raises InUse if the tree is busy (an open file, a working directory, something mounted below).
    """
    resolved = os.path.realpath(target)
    while _unmount_top(resolved):
        pass


def _unmount_top(target: str) -> bool:
    """Unmount the topmost mount at `target`, an absolute path without symbolic links. False if there is none."""
    top = sys_mounts.mounted_at(target)
    if top is None:
        return False
    try:
        if device.identity_of(top) is not None:
            unmount_union(target)
        else:
            sys_mounts.umount2(target, consts.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"{target} is busy: something is open or mounted in it") from None
        if error.errno != errno.EINVAL:  # EINVAL: another process has unmounted it since we looked
            raise
    return True
