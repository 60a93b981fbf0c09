"""Project quotas by quotactl_fd(2) (Linux 5.14): limits and use of a project on the file system of a descriptor.

The commands are those of the common quota code, which ext4, f2fs and XFS answer alike (fs/quota/quota.c). Descriptors
may be of any file there, but not O_PATH. All raise OSError: ENOSYS where the file system or the kernel has no quotas,
ESRCH where they are not switched on. Setting needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from unionfs.linux import consts, libc

# linux/quota.h, linux/dqblk_xfs.h
PRJQUOTA = 2
Q_GETQUOTA = 0x800007
Q_SETQUOTA = 0x800008
Q_GETNEXTQUOTA = 0x800009
Q_XGETQSTATV = ord("X") << 8 | 8
QIF_BLIMITS = 1
QIF_DQBLKSIZE = 1024
FS_QSTATV_VERSION1 = 1
FS_QUOTA_PDQ_ENFD = 1 << 5

# struct if_nextdqblk: hard and soft limit, use in bytes; the same of inodes; two times; valid, id. In struct if_dqblk
# the last is padding.
_DQBLK = struct.Struct("=8QII")
_STATV_SIZE = 256  # struct fs_quota_statv is smaller
_STATV = struct.Struct("=bxH")  # its beginning: qs_version, qs_flags

_quotactl_fd = libc.syscall(consts.NR_quotactl_fd, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


class Quota(NamedTuple):
    """A project's: the bytes that it may have (0: any number), and the bytes and inodes that it has."""

    project: int
    limit: int
    size: int
    inodes: int


def limits_are_enforced(fd: int) -> bool:
    """Whether limits of projects are. False where there are none, or use is only counted."""
    state = ctypes.create_string_buffer(_STATV.pack(FS_QSTATV_VERSION1, 0), _STATV_SIZE)
    try:
        _call(fd, Q_XGETQSTATV, 0, state)
    except OSError:
        return False
    return bool(_STATV.unpack_from(state)[1] & FS_QUOTA_PDQ_ENFD)


def get(fd: int, project: int) -> Quota:
    """The quota of a project; for one that nobody has heard of all is 0."""
    try:
        return _get(fd, Q_GETQUOTA, project)._replace(project=project)
    except FileNotFoundError:  # XFS has no record of it
        return Quota(project, 0, 0, 0)


def get_next(fd: int, project: int) -> Quota | None:
    """The quota of the first project from this number on that has a limit or a file; None if there is none."""
    try:
        return _get(fd, Q_GETNEXTQUOTA, project)
    except FileNotFoundError:
        return None


def set_limit(fd: int, project: int, size: int) -> None:
    """Let the files of a project have `size` bytes, rounded down to KiB; 0 for any number."""
    limits = _DQBLK.pack(size // QIF_DQBLKSIZE, size // QIF_DQBLKSIZE, 0, 0, 0, 0, 0, 0, QIF_BLIMITS, 0)
    _call(fd, Q_SETQUOTA, project, ctypes.create_string_buffer(limits, len(limits)))


def _get(fd: int, command: int, project: int) -> Quota:
    block = ctypes.create_string_buffer(_DQBLK.size)
    _call(fd, command, project, block)
    hard, _, size, _, _, inodes, _, _, _, number = _DQBLK.unpack(block.raw)
    return Quota(number, hard * QIF_DQBLKSIZE, size, inodes)


def _call(fd: int, command: int, project: int, argument: ctypes.Array[ctypes.c_char]) -> None:
    _quotactl_fd(fd, command << 8 | PRJQUOTA, project, argument)
