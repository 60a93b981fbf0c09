"""Whether an entry has changed between two trees.

What counts is what a layer's archive can say: type, mode, owner, device number, size and time (not of directories),
target, extended attributes of the kinds that are kept, content. Not inode number, change time or link count.

Time does not decide alone. Where everything else is equal, content does: an edit that puts size and time back is an
edit (moby#31805), and a time that one side has cut to seconds is not (Docker's rule, moby pkg/archive). That does not
mean reading the whole of a tree: an inode that kept its number and its change time, which no program can set, was not
touched.
"""

from __future__ import annotations

import errno
import os
import stat

from drivers.archive import policy
from drivers.disk.trees import open_regular
from unionfs.linux.files import fd_path

_PIECE = 1 << 20


def is_same(new_fd: int, old_fd: int, name: bytes, new: os.stat_result, old: os.stat_result) -> bool:
    """`name` in the directories `new_fd` and `old_fd`, whose status is `new` and `old`. Raises OSError."""
    if not _same_status(new, old):
        return False
    if (new.st_ino, new.st_ctime_ns, new.st_mtime_ns) == (old.st_ino, old.st_ctime_ns, old.st_mtime_ns):
        return True
    kind = stat.S_IFMT(new.st_mode)
    if kind == stat.S_IFLNK and link_target(fd_path(new_fd, name)) != link_target(fd_path(old_fd, name)):
        return False
    if xattrs(fd_path(new_fd, name)) != xattrs(fd_path(old_fd, name)):
        return False
    return kind != stat.S_IFREG or not new.st_size or _same_content(new_fd, old_fd, name)


def is_same_root(new_fd: int, old_fd: int) -> bool:
    """The same of the roots of two trees."""
    if not _same_status(os.fstat(new_fd), os.fstat(old_fd)):
        return False
    return xattrs(fd_path(new_fd), follow=True) == xattrs(fd_path(old_fd), follow=True)


def _same_status(new: os.stat_result, old: os.stat_result) -> bool:
    if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
        return False
    kind = stat.S_IFMT(new.st_mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and new.st_rdev != old.st_rdev:
        return False
    # A directory's size and time only say that something in it has changed, and the walk looks for that itself.
    return kind == stat.S_IFDIR or (new.st_size == old.st_size and _same_time(new.st_mtime_ns, old.st_mtime_ns))


def _same_time(new: int, old: int) -> bool:
    return new == old or (new // 10**9 == old // 10**9 and (new % 10**9 == 0 or old % 10**9 == 0))


def xattrs(path: bytes, *, follow: bool = False) -> dict[bytes, bytes]:
    """The extended attributes of `path` that layers keep, by name, in the order of their names."""
    try:
        names = {os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow)}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOENT):
            return {}
        raise
    found = {}
    for name in sorted(filter(policy.is_kept, names)):
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOENT):  # removed meanwhile
                raise
    return found


def link_target(path: bytes) -> bytes:
    """Where the symbolic link `path` leads. Raises OSError, ESTALE if something else is there by now."""
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path) from None
        raise


def _same_content(new_fd: int, old_fd: int, name: bytes) -> bool:
    new = open_regular(new_fd, name)
    try:
        old = open_regular(old_fd, name)
        try:
            return _same_bytes(new, old)
        finally:
            os.close(old)
    finally:
        os.close(new)


def _same_bytes(new: int, old: int) -> bool:
    """Compare two files, without reading holes that both have."""
    position = 0
    while True:
        position = min(_data(new, position), _data(old, position))
        piece = os.pread(new, _PIECE, position)
        if piece != os.pread(old, len(piece) or 1, position):
            return False
        if not piece:
            return True
        position += len(piece)


def _data(fd: int, position: int) -> int:
    """Where data next is; the end of the file when none is, EINVAL where the file system cannot tell."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return os.fstat(fd).st_size
        if error.errno == errno.EINVAL:
            return position
        raise
