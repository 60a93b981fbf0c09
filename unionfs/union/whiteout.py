"""Every on-disk form of "deleted" and "opaque", read and written. No other module knows them.

AUFS form, read and written (aufs5 Documentation/filesystems/aufs; OCI image-spec layer.md):
    .wh.NAME         hides NAME in the branches below; empty, mode 0444, a hard link of .wh..wh.aufs where that is
                     possible and need not be synced
    .wh..wh..opq     in a directory: nothing below shines through
    .wh..wh.plnk/    pseudo-links (union/pseudolink)
    .wh..wh.orph/    work area
Overlayfs form, read only (Documentation/filesystems/overlayfs.rst):
    character device 0:0                                     hides its own name
    trusted.overlay.opaque=y or user.overlay.opaque=y        opaque directory
Our own form, written for the moment in which a directory has to be empty and opaque at once (rename over it), and
before the marker where that may come to the disk after what rests on it (union/order):
    trusted.unionfs.opaque=y (user.unionfs.opaque without CAP_SYS_ADMIN)
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unionfs.linux import files
from unionfs.union.errors import fail

if TYPE_CHECKING:
    from unionfs.union.branch import Branch
    from unionfs.union.directories import BranchDirectory

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
BASE = b".wh..wh.aufs"
PSEUDO_LINKS = b".wh..wh.plnk"
WORK_AREA = b".wh..wh.orph"

# The longest name that can still be whited out: 255 less the prefix.
NAME_MAX = 255 - len(PREFIX)

# Overlayfs's, without the mount option userxattr and with it.
OVERLAY_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_OPAQUE_ATTRIBUTES = frozenset({*OVERLAY_OPAQUE, "trusted.unionfs.opaque", "user.unionfs.opaque"})
_PRIVATE_ATTRIBUTES = (b"trusted.unionfs.", b"user.unionfs.", b"trusted.overlay.", b"user.overlay.")


def count_directories(root_fd: int) -> int:
    """How many of a branch's top directories are its union's own."""
    count = 0
    for name in (PSEUDO_LINKS, WORK_AREA):
        with contextlib.suppress(FileNotFoundError):
            count += stat.S_ISDIR(os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode)
    return count


def of(name: bytes) -> bytes:
    """The whiteout of `name`."""
    return PREFIX + name


def is_reserved(name: bytes) -> bool:
    """Names the union keeps for itself: never listed, never found, refused with EPERM."""
    return name.startswith(PREFIX)


def is_private_attribute(name: bytes) -> bool:
    """Extended attributes that carry union state: hidden from the mount, and never copied from a branch."""
    return name.startswith(_PRIVATE_ATTRIBUTES)


def is_overlay_whiteout(entry: os.stat_result) -> bool:
    return stat.S_ISCHR(entry.st_mode) and entry.st_rdev == 0


def is_opaque(parent_fd: int, name: bytes) -> bool:
    """Whether the directory `name` in `parent_fd` hides what lies below it."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Not by a longer name: `name` may have become a link to anywhere.
        fd = os.open(name, flags, dir_fd=parent_fd)
    except FileNotFoundError:
        return False
    except PermissionError:  # it may be looked into, and not be listed
        fd = os.open(name, flags | os.O_PATH, dir_fd=parent_fd)
        file: int | bytes = files.fd_path(fd)
    else:
        file = fd  # no call has to find it anew
    try:
        if os.access(OPAQUE, os.F_OK, dir_fd=fd, follow_symlinks=False):
            return True
        marked = _OPAQUE_ATTRIBUTES.intersection(os.listxattr(file))
        return any(_says_yes(file, attribute) for attribute in marked)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA, errno.ENOENT):
            return False
        raise
    finally:
        os.close(fd)


def _says_yes(file: int | bytes, attribute: str) -> bool:
    try:
        return os.getxattr(file, attribute) == b"y"
    except PermissionError:
        return True  # it is there, and nothing else is ever written into it


def create(branch: Branch, directory: BranchDirectory, name: bytes) -> None:
    """Hide `name` of the branches below `directory`. Already hidden is fine. ENOSPC and friends pass."""
    target = of(name)
    if len(target) > 255:
        fail(errno.ENAMETOOLONG, name)
    if target in directory:
        return
    if not branch.keeps_order:
        # To sync one link would be to log them all, or to commit (log_all_new_ancestors(), fs/btrfs/tree-log.c).
        _create_file(directory.fd, target)
    else:
        try:
            os.link(BASE, target, src_dir_fd=branch.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            _create_base(branch)
            os.link(BASE, target, src_dir_fd=branch.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV):
                raise
            # The base has all the links its file system allows, or the file system has no hard links.
            _create_file(directory.fd, target)
    directory.add(target)


def _create_base(branch: Branch) -> None:
    with branch.unseen(), contextlib.suppress(FileExistsError):
        _create_file(branch.fd, BASE)


def _create_file(dirfd: int, name: bytes) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=dirfd))


@contextlib.contextmanager
def opened(directory: BranchDirectory, name: bytes) -> Iterator[int]:
    """A descriptor on the whiteout of `name`. EINVAL for somebody else's that is no file."""
    looked_at = os.open(of(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        if not stat.S_ISREG(os.fstat(looked_at).st_mode):
            fail(errno.EINVAL, name)
        fd = files.reopen(looked_at, os.O_RDONLY)
    finally:
        os.close(looked_at)
    try:
        yield fd
    finally:
        os.close(fd)


def drop(directory: BranchDirectory, name: bytes) -> None:
    """Take the whiteout of `name` away, if there is one."""
    target = of(name)
    if target in directory:
        os.unlink(target, dir_fd=directory.fd)
        directory.discard(target)


def mark_opaque(branch: Branch, fd: int) -> None:
    """Make the directory `fd` opaque in the AUFS form. Marked already is fine."""
    # What its owner may not look into tells by the attribute's name alone.
    if not branch.keeps_order or branch.confined:
        mark_opaque_unseen(branch, fd)
    with contextlib.suppress(FileExistsError):
        _create_file(fd, OPAQUE)


def mark_opaque_unseen(branch: Branch, fd: int) -> None:
    """Make the directory `fd` opaque by an attribute: no entry of it says so, and it can be emptied."""
    os.setxattr(files.fd_path(fd), branch.attribute("opaque"), b"y")


def remove_all(directory: BranchDirectory) -> None:
    """Remove the whiteouts and markers of a directory in which the union shows nothing: there is nothing else in it."""
    for name in list(directory.names):
        os.unlink(name, dir_fd=directory.fd)
        directory.discard(name)


def drop_overlay(directory: BranchDirectory, name: bytes) -> None:
    """Take overlayfs's whiteout of `name` away, beside which there is ours: the name is free for a new entry."""
    os.unlink(name, dir_fd=directory.fd)
    directory.discard(name)
