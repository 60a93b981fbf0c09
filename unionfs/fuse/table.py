"""What each opcode's request and reply are made of: the one place that says so. request and wiretext read it.

A request is its header, the structure `request`, `names` strings each ending in NUL, and, where `unit` is not 0, data:
as many times `unit` bytes as the field `counted` of the structure says. fs/fuse/dir.c, file.c, xattr.c, dev.c.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from unionfs.fuse import abi


class Row(NamedTuple):
    """One opcode. `reply` is the structure its answer begins with; None: nothing, or plain bytes.

    `answers`: whether the kernel waits for an answer. Where it does not, none must be sent; INTERRUPT may be answered
    with EAGAIN, and then comes again (fuse_dev_do_write).
    """

    opcode: int
    name: str
    request: Struct | None
    names: int
    reply: Struct | None
    answers: bool
    counted: int
    unit: int

    @property
    def data(self) -> bool:
        """Whether bytes follow the structure and the names."""
        return self.unit != 0


def _row(
    opcode: int, name: str, request: Struct | None = None, names: int = 0, reply: Struct | None = None,
    *, answers: bool = True, data: str = "", unit: int = 1,
) -> Row:
    """`data`: the field of `request` that says how many units of data follow."""
    if not data or request is None:
        return Row(opcode, name, request, names, reply, answers, 0, 0)
    return Row(opcode, name, request, names, reply, answers, abi.FIELDS[request].index(data), unit)


_ASSIGNED = (
    _row(abi.FUSE_LOOKUP, "LOOKUP", None, 1, abi.ENTRY_OUT),
    _row(abi.FUSE_FORGET, "FORGET", abi.FORGET_IN, answers=False),
    _row(abi.FUSE_GETATTR, "GETATTR", abi.GETATTR_IN, 0, abi.ATTR_OUT),
    _row(abi.FUSE_SETATTR, "SETATTR", abi.SETATTR_IN, 0, abi.ATTR_OUT),
    _row(abi.FUSE_READLINK, "READLINK"),
    _row(abi.FUSE_SYMLINK, "SYMLINK", None, 2, abi.ENTRY_OUT),
    _row(abi.FUSE_MKNOD, "MKNOD", abi.MKNOD_IN, 1, abi.ENTRY_OUT),
    _row(abi.FUSE_MKDIR, "MKDIR", abi.MKDIR_IN, 1, abi.ENTRY_OUT),
    _row(abi.FUSE_UNLINK, "UNLINK", None, 1),
    _row(abi.FUSE_RMDIR, "RMDIR", None, 1),
    _row(abi.FUSE_RENAME, "RENAME", abi.RENAME_IN, 2),
    _row(abi.FUSE_LINK, "LINK", abi.LINK_IN, 1, abi.ENTRY_OUT),
    _row(abi.FUSE_OPEN, "OPEN", abi.OPEN_IN, 0, abi.OPEN_OUT),
    _row(abi.FUSE_READ, "READ", abi.READ_IN),
    _row(abi.FUSE_WRITE, "WRITE", abi.WRITE_IN, 0, abi.WRITE_OUT, data="size"),
    _row(abi.FUSE_STATFS, "STATFS", None, 0, abi.STATFS_OUT),
    _row(abi.FUSE_RELEASE, "RELEASE", abi.RELEASE_IN),
    _row(abi.FUSE_FSYNC, "FSYNC", abi.FSYNC_IN),
    _row(abi.FUSE_SETXATTR, "SETXATTR", abi.SETXATTR_IN, 1, data="size"),
    # Answered with the value or the list itself unless the size asked for is 0.
    _row(abi.FUSE_GETXATTR, "GETXATTR", abi.GETXATTR_IN, 1, abi.GETXATTR_OUT),
    _row(abi.FUSE_LISTXATTR, "LISTXATTR", abi.GETXATTR_IN, 0, abi.GETXATTR_OUT),
    _row(abi.FUSE_REMOVEXATTR, "REMOVEXATTR", None, 1),
    _row(abi.FUSE_FLUSH, "FLUSH", abi.FLUSH_IN),
    _row(abi.FUSE_INIT, "INIT", abi.INIT_IN, 0, abi.INIT_OUT),
    _row(abi.FUSE_OPENDIR, "OPENDIR", abi.OPEN_IN, 0, abi.OPEN_OUT),
    _row(abi.FUSE_READDIR, "READDIR", abi.READ_IN),
    _row(abi.FUSE_RELEASEDIR, "RELEASEDIR", abi.RELEASE_IN),
    _row(abi.FUSE_FSYNCDIR, "FSYNCDIR", abi.FSYNC_IN),
    _row(abi.FUSE_GETLK, "GETLK", abi.LK_IN, 0, abi.LK_OUT),
    _row(abi.FUSE_SETLK, "SETLK", abi.LK_IN),
    _row(abi.FUSE_SETLKW, "SETLKW", abi.LK_IN),
    _row(abi.FUSE_ACCESS, "ACCESS", abi.ACCESS_IN),
    _row(abi.FUSE_CREATE, "CREATE", abi.CREATE_IN, 1, abi.CREATE_OUT),
    _row(abi.FUSE_INTERRUPT, "INTERRUPT", abi.INTERRUPT_IN, answers=False),
    _row(abi.FUSE_BMAP, "BMAP", abi.BMAP_IN, 0, abi.BMAP_OUT),
    _row(abi.FUSE_DESTROY, "DESTROY"),
    _row(abi.FUSE_IOCTL, "IOCTL", abi.IOCTL_IN, 0, abi.IOCTL_OUT, data="in_size"),
    _row(abi.FUSE_POLL, "POLL", abi.POLL_IN, 0, abi.POLL_OUT),
    _row(abi.FUSE_NOTIFY_REPLY, "NOTIFY_REPLY", abi.NOTIFY_RETRIEVE_IN, answers=False, data="size"),
    _row(abi.FUSE_BATCH_FORGET, "BATCH_FORGET", abi.BATCH_FORGET_IN, answers=False, data="count", unit=16),
    _row(abi.FUSE_FALLOCATE, "FALLOCATE", abi.FALLOCATE_IN),
    _row(abi.FUSE_READDIRPLUS, "READDIRPLUS", abi.READ_IN),
    _row(abi.FUSE_RENAME2, "RENAME2", abi.RENAME2_IN, 2),
    _row(abi.FUSE_LSEEK, "LSEEK", abi.LSEEK_IN, 0, abi.LSEEK_OUT),
    _row(abi.FUSE_COPY_FILE_RANGE, "COPY_FILE_RANGE", abi.COPY_FILE_RANGE_IN, 0, abi.WRITE_OUT),
    _row(abi.FUSE_SETUPMAPPING, "SETUPMAPPING", abi.SETUPMAPPING_IN),
    _row(abi.FUSE_REMOVEMAPPING, "REMOVEMAPPING", abi.REMOVEMAPPING_IN, data="count", unit=16),
    _row(abi.FUSE_SYNCFS, "SYNCFS", abi.SYNCFS_IN),
    _row(abi.FUSE_TMPFILE, "TMPFILE", abi.CREATE_IN, 1, abi.CREATE_OUT),
    _row(abi.FUSE_STATX, "STATX", abi.STATX_IN, 0, abi.STATX_OUT),
    _row(abi.FUSE_COPY_FILE_RANGE_64, "COPY_FILE_RANGE_64", abi.COPY_FILE_RANGE_IN, 0, abi.COPY_FILE_RANGE_OUT),
)
_BY_OPCODE = {row.opcode: row for row in _ASSIGNED}

# Indexed by opcode; None where none is assigned (0, 7, 19).
ROWS: tuple[Row | None, ...] = tuple(_BY_OPCODE.get(opcode) for opcode in range(max(_BY_OPCODE) + 1))


def name(opcode: int) -> str:
    """The opcode's name without its prefix, or its number: for text only."""
    if opcode == abi.CUSE_INIT:
        return "CUSE_INIT"
    row = ROWS[opcode] if 0 <= opcode < len(ROWS) else None
    return f"opcode {opcode}" if row is None else row.name
