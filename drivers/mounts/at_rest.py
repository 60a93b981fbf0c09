"""The tree of an active snapshot that is not in use, to look at: nothing can be written to it, by whatever name.

A union or an overlay that writes to a layer must be the only one that reads it too: it knows nothing of what is changed
beside it, and a container that exchanges one thing for another between a look and an opening could have a second server
open what it likes. Such a tree is seen through the mount that there is. A directory, or a device, has one set of inodes
and one page cache for all its mounts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from dataclasses import replace

from drivers.api import Mount
from drivers.disk.trees import DIRECTORY, delete_path
from drivers.errors import InUse
from drivers.mounts.overlayfs import overlay_tree
from drivers.mounts.union import branches
from unionfs.options import parse


def at_rest(mount: Mount) -> Mount:
    """The tree of `mount`, with the writable layer of a union or an overlay as one more that is only read.

    InUse if a union or an overlay writes to that now. Raises OSError.
    """
    if mount.type == "unionfs":
        stack = [(branch.path, branch.permission) for branch in parse(None, mount.options).branches]
        for path, permission in stack:
            if permission == "rw" and _is_locked(path):
                raise InUse(f"a union writes to {path}: look at it through its mount, or unmount it first")
        return replace(mount, options=(branches([(path, "rr") for path, _ in stack]), "ro"))
    if mount.type == "overlay":
        words = dict(option.partition("=")[::2] for option in mount.options)
        upper, work = words.get("upperdir"), words.get("workdir")
        if upper is None or work is None:
            return mount
        if _is_upper(upper, work):
            raise InUse(f"an overlay writes to {upper}: look at it through its mount, or unmount it first")
        rest = [option for option in mount.options if not option.startswith(("upperdir=", "workdir=", "volatile"))]
        return replace(mount, options=(f"lowerdir+={upper}", *rest, "ro"))
    return mount


def _is_locked(path: str) -> bool:
    """A union locks its writable branch for as long as its server lives (unionfs.union.branch)."""
    fd = os.open(path, DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_upper(path: str, work: str) -> bool:
    """Whether an overlay writes to `path`, in whatever mount namespace; False, too, where the kernel cannot tell.

    With index=on it refuses a layer that is the upper one of another overlay (ovl_report_in_use(),
    fs/overlayfs/super.c), if the file system has file handles. So `path` is tried as a lower layer, to which nothing is
    written, of an overlay that is made for the purpose in `work`, the work directory.
    """
    place = tempfile.mkdtemp(prefix="try-", dir=work)
    try:
        for name in ("upper", "work"):
            os.mkdir(f"{place}/{name}")
        options = (f"lowerdir+={path}", f"upperdir={place}/upper", f"workdir={place}/work", "index=on")
        os.close(overlay_tree("overlay", options))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    finally:
        delete_path(place)
    return False
