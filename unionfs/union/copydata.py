"""The bytes of one file into another: shared where the file systems can, holes kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from unionfs.linux import files

_CHUNK = 1 << 23
# A file system that cannot do it this way; the next way is tried.
_UNABLE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EPERM})
# ... not for this file only, but for every one on these two devices.
_NEVER = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY})

# Pairs of st_dev between which no extents can be shared: a guess that is wrong costs a copy, and one that is not made
# a system call a file.
_cannot_clone: set[tuple[int, int]] = set()


def copy(source: int, entry: os.stat_result, target: int, device: int, length: int, check: Callable[[], None]) -> None:
    """Copy the first `length` bytes of the file `source`, whose status is `entry`, into the empty file `target` on
    `device`. `check` is called between pieces and may raise. Raises OSError: ENOSPC, EDQUOT, EIO."""
    if length == entry.st_size and _clone(source, entry.st_dev, target, device):
        return
    if entry.st_blocks * 512 >= entry.st_size:
        _copy_range(source, target, 0, length, check)
        return
    os.truncate(target, length)
    offset = 0
    while offset < length:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole to the end
            start = offset  # no SEEK_DATA here
        try:
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError:
            end = length
        _copy_range(source, target, start, min(end, length), check)
        offset = end


def _clone(source: int, source_device: int, target: int, device: int) -> bool:
    if (source_device, device) in _cannot_clone:
        return False
    try:
        files.ficlone(target, source)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        if error.errno in _NEVER:
            _cannot_clone.add((source_device, device))
        return False
    return True


def _copy_range(source: int, target: int, start: int, end: int, check: Callable[[], None]) -> None:
    while start < end:
        check()
        try:
            count = os.copy_file_range(source, target, min(end - start, _CHUNK), start, start)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            data = os.pread(source, min(end - start, _CHUNK), start)
            count = len(data)
            written = 0
            while written < count:
                written += os.pwrite(target, data[written:], start + written)
        if count == 0:
            return  # the source shrank under us
        start += count
