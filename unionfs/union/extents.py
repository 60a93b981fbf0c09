"""Ranges of open files: room for them, holes in them, copies of them.

Like reads and writes these take descriptors and no lock. Everything is the branch's file system's to do or to refuse; a
caller that is refused has ways of its own, which the union would only imitate.
"""

from __future__ import annotations

import errno
import os

from unionfs.linux import files
from unionfs.union.errors import fail

# A request that the server is busy with cannot be killed: cp(1) comes back for the rest. Btrfs shares no longer
# extents than this anyway (BTRFS_MAX_EXTENT_SIZE).
_MOST_COPIED = 1 << 27
# Bytes below which a request is as quick as any.
QUICK = 1 << 20


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) in any mode (FALLOC_FL_*) that the branch has.

    Raises OSError: EOPNOTSUPP, EINVAL, EFBIG, ENOSPC, EBADF (not open for writing). The kernel lets only preallocating,
    punching and zeroing through to a FUSE server (fuse_file_fallocate(), fs/fuse/file.c).
    """
    files.fallocate(fd, mode, offset, length)


def seek(fd: int, offset: int, whence: int) -> int:
    """The next data (SEEK_DATA) or hole (SEEK_HOLE) at or after `offset`. ENXIO beyond the end, EINVAL for any other
    `whence`: a position is the kernel's to keep."""
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        fail(errno.EINVAL)
    return os.lseek(fd, offset, whence)


def copy(fd_in: int, offset_in: int, fd_out: int, offset_out: int, length: int, flags: int) -> int:
    """copy_file_range(2): how many bytes were copied, shared where the file system can; 0 at the end of the source.

    Raises OSError: EINVAL (flags, or ranges of one file that overlap), EBADF, ENOSPC, EFBIG, and EXDEV when the two are
    in branches on different file systems. Copying by hand in that case, as copy-up does, would be wrong here: the
    kernel takes EXDEV and EOPNOTSUPP from a FUSE server as its cue to splice the range through its own cache
    (fuse_copy_file_range(), fs/fuse/file.c), in pieces, where a signal can end it.
    """
    if flags:
        fail(errno.EINVAL)
    return os.copy_file_range(fd_in, fd_out, min(length, _MOST_COPIED), offset_in, offset_out)
