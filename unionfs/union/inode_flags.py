"""Inode flags, as chattr(1) and lsattr(1) know them, of a node; and their newer form, struct fsxattr.

They are shown as the branch's file has them and set on the file in the writable branch, whose file system then
enforces them on the server's own calls, whoever it runs as: EPERM reaches the caller from there.

Copy-up does not copy them, but for FS_IMMUTABLE_FL and FS_APPEND_FL, which the union enforces by itself (see
`protection`) until somebody takes them away. Who sets flags on a lower file says all that the copy is to have: it gets
the flags as set, those shown before included.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator

from unionfs.linux import consts, files
from unionfs.union import copyup, place, protection
from unionfs.union.errors import fail
from unionfs.union.identity import record
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack

# What every file system means the same by. Others tell how a file is stored (FS_EXTENT_FL, FS_INLINE_DATA_FL …).
_PORTABLE = consts.FS_IMMUTABLE_FL | consts.FS_APPEND_FL | consts.FS_NODUMP_FL | consts.FS_NOATIME_FL
_PORTABLE_XFLAGS = (
    consts.FS_XFLAG_IMMUTABLE | consts.FS_XFLAG_APPEND | consts.FS_XFLAG_NODUMP | consts.FS_XFLAG_NOATIME
)
_XFLAGS = struct.Struct("<I")


def get(stack: Stack, node: Node) -> int:
    """FS_*_FL. ENOTTY for what is neither a file nor a directory (the kernel asks a FUSE server for no other,
    fuse_priv_ioctl_prepare() in fs/fuse/ioctl.c), ENOTTY or EOPNOTSUPP where the branch's file system has none."""
    with _opened(stack, node) as fd:
        return files.get_flags(fd) | node.protection


def set_(stack: Stack, node: Node, flags: int) -> None:
    """A lower file is copied up first, without the lock. EROFS, EPERM (the server may not), EOPNOTSUPP, ENOTTY.

    FS_CASEFOLD_FL is refused (EOPNOTSUPP): the union tells names apart by their bytes.
    """
    shown = get(stack, node)
    if flags & ~shown & consts.FS_CASEFOLD_FL:
        fail(errno.EOPNOTSUPP)
    copied = copyup.copy_up(stack, node)
    with _opened(stack, node) as fd:
        if copied:
            flags = _for_copy(files.get_flags(fd), shown, flags, _PORTABLE)
        with _protecting(node, fd, flags & protection.ANY):
            files.set_flags(fd, flags & ~node.protection)
    stack.changed(node)  # its ctime


def get_extended(stack: Stack, node: Node) -> bytes:
    """struct fsxattr (linux/fs.h), 28 bytes. Errors as of `get`."""
    with _opened(stack, node) as fd:
        attributes = files.get_fsxattr(fd)
    return _XFLAGS.pack(_xflags(attributes) | _as_xflags(node.protection)) + attributes[_XFLAGS.size :]


def set_extended(stack: Stack, node: Node, attributes: bytes) -> None:
    """Errors as of `set_`; EINVAL if `attributes` is not a struct fsxattr."""
    shown = _xflags(get_extended(stack, node))
    if len(attributes) < _XFLAGS.size:
        fail(errno.EINVAL)
    copied = copyup.copy_up(stack, node)
    with _opened(stack, node) as fd:
        flags = _xflags(attributes)
        if copied:
            flags = _for_copy(_xflags(files.get_fsxattr(fd)), shown, flags, _PORTABLE_XFLAGS)
        wanted = sum(flag for flag in (protection.IMMUTABLE, protection.APPEND) if flags & _as_xflags(flag))
        with _protecting(node, fd, wanted):
            files.set_fsxattr(fd, _XFLAGS.pack(flags & ~_as_xflags(node.protection)) + attributes[_XFLAGS.size :])
    stack.changed(node)


def _for_copy(current: int, shown: int, wanted: int, portable: int) -> int:
    """What to set on a copy that has the flags `current`, for a caller who saw those of the lower file (`shown`): what
    he changed, and what means the same on both file systems."""
    said = portable | shown ^ wanted
    return current & ~said | wanted & said


@contextlib.contextmanager
def _protecting(node: Node, fd: int, wanted: int) -> Iterator[None]:
    """Of what the copy `fd` keeps of its original's flags, no more than is `wanted`; as before, if what is done within
    fails. The rest of `wanted` is the copy's own."""
    before = node.protection
    if before & ~wanted:
        _keep(node, fd, before & wanted)
    try:
        yield
    except BaseException:
        if node.protection != before:
            _keep(node, fd, before)
        raise


def _keep(node: Node, fd: int, flags: int) -> None:
    os.setxattr(fd, node.branch.attribute("origin"), record(node.origin, flags))
    node.protection = flags


def _as_xflags(flags: int) -> int:
    immutable = consts.FS_XFLAG_IMMUTABLE if flags & protection.IMMUTABLE else 0
    return immutable | (consts.FS_XFLAG_APPEND if flags & protection.APPEND else 0)


def _xflags(attributes: bytes) -> int:
    return int(_XFLAGS.unpack_from(attributes)[0])


@contextlib.contextmanager
def _opened(stack: Stack, node: Node) -> Iterator[int]:
    """The file itself: an O_PATH descriptor takes no ioctl, and anything but these two would take ours for its own."""
    if not node.is_directory and node.kind != stat.S_IFREG:
        fail(errno.ENOTTY)
    fd = place.of(stack, node).open(os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
