"""A faithful copy of a tree: content, holes, hard links, owners, modes, attributes, ACLs, capabilities, times.

Data is shared where the file system can (FICLONE), else copied inside the kernel (copy_file_range), else through us,
each file for itself. A way that the file system does not have is not tried again in the same copy; one that only fails
for some file is tried again for the next. Holes stay holes.

Not copied: inode flags (chattr(1)), and access times of what the copy itself reads.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from drivers.disk.trees import DIRECTORY, open_below, walk
from unionfs.linux.files import fd_path, ficlone

# What the file system, or the pair of them, says for every file; and what it says for a single one: on btrfs a file
# without copy-on-write (chattr +C), or one that is swapped to.
_NEVER = (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS, errno.ENOTTY)
_NOT_THIS = (errno.EINVAL, errno.ETXTBSY)
_PIECE = 1 << 20  # of a copy through our memory


def copy_tree(source: str, target: str) -> None:
    """Make the directory `target`, a copy of the directory `source`. Nothing may change `source` meanwhile.

    Raises OSError, and leaves what it had made.
    """
    os.mkdir(target, 0o700)
    source_fd = os.open(source, DIRECTORY)
    target_fd = os.open(target, DIRECTORY)
    try:
        _Copy(source_fd, target_fd).run()
    finally:
        os.close(source_fd)
        os.close(target_fd)


class _Copy:
    def __init__(self, source_fd: int, target_fd: int) -> None:
        self._source_fd = source_fd
        self._target_fd = target_fd
        self._copier = Copier()
        # The first copy of each file that has several names: (directory, name) below the target, and how many names
        # are still to come; by (st_dev, st_ino). It goes with its last name, so that there are never many.
        self._linked: dict[tuple[int, int], tuple[bytes, bytes, int]] = {}

    def run(self) -> None:
        directories = []
        for path, source_fd, found in walk(self._source_fd):
            directories.append(path)
            target_fd = open_below(self._target_fd, path)
            try:
                for entry in found:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        os.mkdir(entry.name, 0o700, dir_fd=target_fd)
                    elif status.st_nlink == 1 or not self._link(path, target_fd, entry.name, status):
                        self._copier.copy(source_fd, target_fd, entry.name, status)
                        copy_attributes(fd_path(source_fd, entry.name), fd_path(target_fd, entry.name), status)
            finally:
                os.close(target_fd)
        # Children first, and only when all are made: making an entry changes its directory's times, and takes over its
        # default ACL.
        for path in reversed(directories):
            self._directory_attributes(path)

    def _link(self, path: bytes, target_fd: int, name: bytes, status: os.stat_result) -> bool:
        """Make one more name of a file that has been copied; False, and remembered, if this is its first."""
        identity = (status.st_dev, status.st_ino)
        if identity not in self._linked:
            self._linked[identity] = (path, name, status.st_nlink - 1)
            return False
        first_path, first_name, left = self._linked.pop(identity)
        if left > 1:
            self._linked[identity] = (first_path, first_name, left - 1)
        first_fd = open_below(self._target_fd, first_path)
        try:
            os.link(first_name, name, src_dir_fd=first_fd, dst_dir_fd=target_fd, follow_symlinks=False)
        finally:
            os.close(first_fd)
        return True

    def _directory_attributes(self, path: bytes) -> None:
        source_fd = open_below(self._source_fd, path)
        try:
            target_fd = open_below(self._target_fd, path)
            try:
                copy_attributes(fd_path(source_fd), fd_path(target_fd), os.fstat(source_fd), follow=True)
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)


class Copier:
    """Copies one entry at a time, and remembers what the file system cannot do for any file."""

    def __init__(self) -> None:
        self._can_clone = True
        self._can_copy_range = True

    def copy(self, source_fd: int, target_fd: int, name: bytes, status: os.stat_result) -> None:
        """Copy `name` in the directory `source_fd`, which is not itself a directory, to the directory `target_fd`. Its
        attributes are left to copy_attributes()."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            self._regular(source_fd, target_fd, name, status.st_size)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source_fd), name, dir_fd=target_fd)
        else:
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=target_fd)

    def _regular(self, source_fd: int, target_fd: int, name: bytes, size: int) -> None:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        source = os.open(name, os.O_RDONLY | os.O_NOATIME | flags, dir_fd=source_fd)
        try:
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target_fd)
            try:
                if size:
                    self._data(source, target, size)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _data(self, source: int, target: int, size: int) -> None:
        if self._can_clone:
            try:
                ficlone(target, source)
                return
            except OSError as error:
                if error.errno not in (*_NEVER, *_NOT_THIS):
                    raise
                self._can_clone = error.errno in _NOT_THIS
        position = 0
        while position < size:
            try:
                position = os.lseek(source, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # a hole up to the end
            end = os.lseek(source, position, os.SEEK_HOLE)
            while position < end:
                position += self._piece(source, target, position, end - position)
        os.ftruncate(target, size)

    def _piece(self, source: int, target: int, position: int, length: int) -> int:
        """Copy up to `length` bytes at `position` of both. How many there were."""
        copied = 0
        if self._can_copy_range:
            try:
                copied = os.copy_file_range(source, target, length, position, position)
            except OSError as error:
                if error.errno not in (*_NEVER, *_NOT_THIS):
                    raise
                self._can_copy_range = error.errno in _NOT_THIS
        if not copied:  # also where it gave nothing, as some file systems do for files that can be read
            data = memoryview(os.pread(source, min(length, _PIECE), position))
            copied = len(data)
            while data:
                written = os.pwrite(target, data, position)
                data, position = data[written:], position + written
        if not copied:
            # Without this a file that is cut short meanwhile would be copied for ever (containers/storage had that).
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        return copied


def copy_attributes(
    source: bytes,
    target: bytes,
    status: os.stat_result,
    *,
    follow: bool = False,
    leave_out: Callable[[bytes], bool] = lambda name: False,
) -> None:
    """Owner first, for chown(2) clears set-id bits and capabilities; times last, for all before changes them.

    `leave_out` tells the extended attributes that are not copied. With `follow` the paths are descriptors' magic links,
    to be followed; otherwise they end in the entry's name.
    """
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=follow)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    try:
        names = os.listxattr(source, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        names = []
    for name in names:
        if leave_out(os.fsencode(name)):
            continue
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=follow), follow_symlinks=follow)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=follow)
