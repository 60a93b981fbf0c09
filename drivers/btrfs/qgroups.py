"""Quotas of btrfs: how much may be written to a subvolume. The ioctls of linux/btrfs.h, and what we do with them.

Each subvolume has a quota group of level 0 with its number while quotas are on. They are of two kinds:

    full     counts who refers to each extent, so a snapshot's own blocks are its `excl`; costs time with each write and
             each snapshot, and has to scan the file system when it is switched on
    simple   (Linux 6.7) charges an extent to the subvolume that wrote it, for ever; costs next to nothing and needs no
             scan. It sets an incompatibility bit: older kernels do not mount the file system any more

Whichever is on is used. Where none is, simple ones are switched on in a file system that is ours alone, and full ones
in somebody else's, so that we change nothing about who can mount that. They are never switched off, and no group that
we did not make is touched.

A subvolume that a container makes inside its own has a group of its own, and would be a way around the limit. In our
own file system the limit is therefore on a group of level 1 with the container's number, and simple quotas make all
subvolumes below the container's members of it. In somebody else's file system the way around stays open.
"""

from __future__ import annotations

import errno
import fcntl
import struct
import time
from contextlib import suppress

from drivers.btrfs import subvolumes
from drivers.errors import TimedOut

# linux/btrfs.h
BTRFS_IOC_QUOTA_CTL = 0xC0109428
BTRFS_IOC_QGROUP_ASSIGN = 0x40189429
BTRFS_IOC_QGROUP_CREATE = 0x4010942A
BTRFS_IOC_QGROUP_LIMIT = 0x8030942B
BTRFS_IOC_QUOTA_RESCAN = 0x4040942C
BTRFS_IOC_QUOTA_RESCAN_STATUS = 0x8040942D
BTRFS_QUOTA_CTL_ENABLE = 1
BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA = 4
BTRFS_QGROUP_LIMIT_MAX_EXCL = 1 << 1

# linux/btrfs_tree.h
QUOTA_TREE = 8
QGROUP_STATUS_KEY = 240
QGROUP_INFO_KEY = 242
QGROUP_RELATION_KEY = 246
_STATUS_INCONSISTENT = 1 << 2
_STATUS_SIMPLE = 1 << 3
_LEVEL_SHIFT = 48
_LAST = (1 << 64) - 1

_CTL = struct.Struct("=QQ")  # struct btrfs_ioctl_quota_ctl_args: cmd, status
_ASSIGN = struct.Struct("=QQQ")  # struct btrfs_ioctl_qgroup_assign_args: assign, src, dst
_CREATE = struct.Struct("=QQ")  # struct btrfs_ioctl_qgroup_create_args: create, qgroupid
_LIMIT = struct.Struct("=6Q")  # struct btrfs_ioctl_qgroup_limit_args: qgroupid; flags, max_rfer, max_excl, two more
_RESCAN = struct.Struct("=QQ48x")  # struct btrfs_ioctl_quota_rescan_args: flags, progress
_STATUS = struct.Struct("=3Q")  # struct btrfs_qgroup_status_item: version, generation, flags
assert (_LIMIT.size, _RESCAN.size) == (48, 64)

# Seconds. A scan reads all metadata of the file system: a few minutes for a disk full of small files.
RESCAN_PATIENCE = 300.0
_PAUSE = 0.05

# Quotas are off; there is no such group (any more); it has members, or its subvolume's blocks are not all given back.
_NOTHING_TO_REMOVE = (errno.ENOTCONN, errno.EINVAL, errno.ENOENT, errno.EBUSY)


def limit(fd: int, subvolume: int, size: int, *, is_ours: bool) -> None:
    """Let no more than `size` bytes be written to the subvolume, which is new. `is_ours`: so is the file system.

    Writing more is EDQUOT. Raises OSError, or TimedOut when a scan takes longer than anybody should wait.
    """
    flags = _flags(fd)
    if flags is None:
        _enable(fd, simple=is_ours)
        flags = _flags(fd) or 0
    if not flags & _STATUS_SIMPLE:
        _await_scan(fd)
    group = subvolume
    if flags & _STATUS_SIMPLE and is_ours:
        group = subvolume | 1 << _LEVEL_SHIFT
        # A subvolume that was being deleted when the file system was unmounted may have had this number, and its groups
        # are there until its last block is given back. They are this one's now.
        for request, argument in (
            (BTRFS_IOC_QGROUP_CREATE, _CREATE.pack(1, group)),
            (BTRFS_IOC_QGROUP_ASSIGN, _ASSIGN.pack(1, subvolume, group)),
        ):
            with suppress(FileExistsError):
                fcntl.ioctl(fd, request, argument)
    fcntl.ioctl(fd, BTRFS_IOC_QGROUP_LIMIT, _LIMIT.pack(group, BTRFS_QGROUP_LIMIT_MAX_EXCL, 0, size, 0, 0))


def lift(fd: int, subvolume: int, *, is_ours: bool) -> None:
    """Take the limit back, before the subvolume is destroyed: at its limit nothing below it could be, for EDQUOT."""
    around = _groups_around(fd, subvolume) if is_ours else []
    for group in (subvolume, *around):
        if not _ignoring(fd, BTRFS_IOC_QGROUP_LIMIT, _LIMIT.pack(group, BTRFS_QGROUP_LIMIT_MAX_EXCL, 0, _LAST, 0, 0)):
            return


def forget(fd: int, destroyed: list[int], *, is_ours: bool) -> None:
    """Remove the groups of subvolumes that have been destroyed, as far as the kernel does not do it by itself.

    Since Linux 6.11 it removes the one of level 0 once the last block is given back, and refuses before (EBUSY).
    """
    for subvolume in destroyed:
        if is_ours:
            for group in _groups_around(fd, subvolume):
                _ignoring(fd, BTRFS_IOC_QGROUP_ASSIGN, _ASSIGN.pack(0, subvolume, group))
                _ignoring(fd, BTRFS_IOC_QGROUP_CREATE, _CREATE.pack(0, group))
        if not _ignoring(fd, BTRFS_IOC_QGROUP_CREATE, _CREATE.pack(0, subvolume)):
            return


def sweep(fd: int) -> None:
    """Remove all groups without a subvolume; for a file system that is ours alone."""
    for group in groups(fd):
        subvolume = group & (1 << _LEVEL_SHIFT) - 1
        if subvolume >= subvolumes.FIRST_FREE and not subvolumes.exists(fd, subvolume):
            forget(fd, [subvolume], is_ours=True)
            _ignoring(fd, BTRFS_IOC_QGROUP_CREATE, _CREATE.pack(0, group))


def groups(fd: int) -> list[int]:
    """All quota groups; none while quotas are off."""
    try:
        items = subvolumes.search(fd, QUOTA_TREE, (0, QGROUP_INFO_KEY, 0), (0, QGROUP_INFO_KEY, _LAST))
        return [item.offset for item in items]
    except FileNotFoundError:
        return []


def _groups_around(fd: int, subvolume: int) -> list[int]:
    """The groups that the group of a subvolume is a member of."""
    try:
        key = (subvolume, QGROUP_RELATION_KEY, 0)
        items = subvolumes.search(fd, QUOTA_TREE, key, (subvolume, QGROUP_RELATION_KEY, _LAST))
        return [item.offset for item in items if item.offset > subvolume]
    except FileNotFoundError:
        return []


def _flags(fd: int) -> int | None:
    """BTRFS_QGROUP_STATUS_FLAG_*; None while quotas are off, and there is no tree of them."""
    try:
        items = subvolumes.search(fd, QUOTA_TREE, (0, QGROUP_STATUS_KEY, 0), (0, QGROUP_STATUS_KEY, 0))
        return next((int(_STATUS.unpack_from(item.data)[2]) for item in items), None)
    except FileNotFoundError:
        return None


def _enable(fd: int, *, simple: bool) -> None:
    """Another process may do so at the same time; that is not an error to the kernel either."""
    if simple:
        try:
            fcntl.ioctl(fd, BTRFS_IOC_QUOTA_CTL, bytearray(_CTL.pack(BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA, 0)))
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel that does not know them
                raise
    fcntl.ioctl(fd, BTRFS_IOC_QUOTA_CTL, bytearray(_CTL.pack(BTRFS_QUOTA_CTL_ENABLE, 0)))


def _await_scan(fd: int) -> None:
    """Wait for the scan to end: until then a limit would be compared with numbers that mean nothing.

    The kernel gives up its counting in some cases (the removal of a large snapshot is one) and says so by a flag; it
    waits for somebody to ask for a scan. BTRFS_IOC_QUOTA_RESCAN_WAIT has no bound, so this polls instead.
    """
    deadline = time.monotonic() + RESCAN_PATIENCE
    while True:
        status = bytearray(_RESCAN.size)
        fcntl.ioctl(fd, BTRFS_IOC_QUOTA_RESCAN_STATUS, status)
        if not _RESCAN.unpack(status)[0]:
            if not (_flags(fd) or 0) & _STATUS_INCONSISTENT:
                return
            try:
                fcntl.ioctl(fd, BTRFS_IOC_QUOTA_RESCAN, _RESCAN.pack(0, 0))
            except OSError as error:
                if error.errno != errno.EINPROGRESS:  # another process was faster
                    raise
        if time.monotonic() >= deadline:
            raise TimedOut(
                f"btrfs has been counting for {RESCAN_PATIENCE:.0f} s what each subvolume takes, which a quota needs: "
                "try again when `btrfs quota rescan -s` says that it has finished"
            )
        time.sleep(_PAUSE)


def _ignoring(fd: int, request: int, argument: bytes) -> bool:
    """Make the request; that there is nothing to do is fine. False if quotas are off."""
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        if error.errno not in _NOTHING_TO_REMOVE:
            raise
        return error.errno != errno.ENOTCONN
    return True
