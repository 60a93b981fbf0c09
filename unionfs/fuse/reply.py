"""Answers and notifications: each function returns one complete message, header included, to write in one write(2).

`unique` is the request's. Times for which the kernel may keep what it is told are whole seconds. The generation of
every node is 0: a node number is never used again. These run once per request, so each packs its message in one call.
"""

from __future__ import annotations

from struct import Struct
from typing import Protocol

from unionfs.fuse import abi


class Status(Protocol):
    """What os.stat_result has. `st_rdev` is at the same time what the kernel sends and wants (new_encode_dev): its
    device numbers have 12 and 20 bits, and within them glibc's encoding in 64 bits is the kernel's in 32.
    """

    @property
    def st_mode(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_blksize(self) -> int: ...
    @property
    def st_atime_ns(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


class FileSystemStatus(Protocol):
    """What os.statvfs_result has."""

    @property
    def f_blocks(self) -> int: ...
    @property
    def f_bfree(self) -> int: ...
    @property
    def f_bavail(self) -> int: ...
    @property
    def f_files(self) -> int: ...
    @property
    def f_ffree(self) -> int: ...
    @property
    def f_bsize(self) -> int: ...
    @property
    def f_namemax(self) -> int: ...
    @property
    def f_frsize(self) -> int: ...


def _message(*parts: Struct) -> Struct:
    """fuse_out_header followed by `parts`."""
    return Struct("<" + "".join(part.format[1:] for part in (abi.OUT_HEADER, *parts)))


_NS = 1_000_000_000
_HEADER_SIZE = abi.OUT_HEADER.size
_ENTRY = _message(abi.ENTRY_OUT)
_ATTR = _message(abi.ATTR_OUT)
_OPEN = _message(abi.OPEN_OUT)
_CREATE = _message(abi.CREATE_OUT)
_WRITE = _message(abi.WRITE_OUT)
_STATFS = _message(abi.STATFS_OUT)
_STATX = _message(abi.STATX_OUT)
_XATTR_SIZE = _message(abi.GETXATTR_OUT)
_OFFSET = _message(abi.LSEEK_OUT)
_COPIED = _message(abi.COPY_FILE_RANGE_OUT)
_IOCTL = _message(abi.IOCTL_OUT)
_INIT = _message(abi.INIT_OUT)
_INVAL_INODE = _message(abi.NOTIFY_INVAL_INODE_OUT)
_INVAL_ENTRY = _message(abi.NOTIFY_INVAL_ENTRY_OUT)
_DELETE = _message(abi.NOTIFY_DELETE_OUT)
_STORE = _message(abi.NOTIFY_STORE_OUT)
_PRUNE = _message(abi.NOTIFY_PRUNE_OUT)

_pack_header = abi.OUT_HEADER.pack
_pack_entry, _ENTRY_SIZE = _ENTRY.pack, _ENTRY.size
_pack_attr, _ATTR_SIZE = _ATTR.pack, _ATTR.size
_pack_open, _OPEN_SIZE = _OPEN.pack, _OPEN.size
_pack_create, _CREATE_SIZE = _CREATE.pack, _CREATE.size
_pack_write, _WRITE_SIZE = _WRITE.pack, _WRITE.size


def error(unique: int, code: int) -> bytes:
    """The errno `code`, positive."""
    return _pack_header(_HEADER_SIZE, -code, unique)


def ok(unique: int) -> bytes:
    """Done, with nothing to say."""
    return _pack_header(_HEADER_SIZE, 0, unique)


def data(unique: int, payload: bytes | bytearray | memoryview) -> bytes:
    """Plain bytes: READ, READLINK, GETXATTR and LISTXATTR of a size."""
    return _pack_header(_HEADER_SIZE + len(payload), 0, unique) + payload


def data_header(unique: int, size: int) -> bytes:
    """What precedes `size` plain bytes, for writev(2): a long READ is then not copied."""
    return _pack_header(_HEADER_SIZE + size, 0, unique)


def entry(unique: int, nodeid: int, ino: int, nlink: int, st: Status, entry_valid: int, attr_valid: int) -> bytes:
    """LOOKUP, SYMLINK, MKNOD, MKDIR, LINK: the entry is the node `nodeid`, which counts one more lookup."""
    atime, atimensec = divmod(st.st_atime_ns, _NS)
    mtime, mtimensec = divmod(st.st_mtime_ns, _NS)
    ctime, ctimensec = divmod(st.st_ctime_ns, _NS)
    return _pack_entry(
        _ENTRY_SIZE, 0, unique, nodeid, 0, entry_valid, attr_valid, 0, 0,
        ino, st.st_size, st.st_blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        st.st_mode, nlink, st.st_uid, st.st_gid, st.st_rdev, st.st_blksize, 0,
    )


def no_entry(unique: int, entry_valid: int) -> bytes:
    """LOOKUP: there is no such name, and for `entry_valid` seconds the kernel need not ask again."""
    return _pack_entry(
        _ENTRY_SIZE, 0, unique, 0, 0, entry_valid, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    )


def attr(unique: int, ino: int, nlink: int, st: Status, attr_valid: int) -> bytes:
    """GETATTR and SETATTR."""
    atime, atimensec = divmod(st.st_atime_ns, _NS)
    mtime, mtimensec = divmod(st.st_mtime_ns, _NS)
    ctime, ctimensec = divmod(st.st_ctime_ns, _NS)
    return _pack_attr(
        _ATTR_SIZE, 0, unique, attr_valid, 0,
        ino, st.st_size, st.st_blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        st.st_mode, nlink, st.st_uid, st.st_gid, st.st_rdev, st.st_blksize, 0,
    )


def opened(unique: int, fh: int, open_flags: int, backing_id: int) -> bytes:
    """OPEN and OPENDIR. `backing_id` counts only with FOPEN_PASSTHROUGH, else it is to be 0."""
    return _pack_open(_OPEN_SIZE, 0, unique, fh, open_flags, backing_id)


def created(
    unique: int, nodeid: int, ino: int, nlink: int, st: Status, entry_valid: int, attr_valid: int,
    fh: int, open_flags: int, backing_id: int,
) -> bytes:
    """CREATE and TMPFILE."""
    atime, atimensec = divmod(st.st_atime_ns, _NS)
    mtime, mtimensec = divmod(st.st_mtime_ns, _NS)
    ctime, ctimensec = divmod(st.st_ctime_ns, _NS)
    return _pack_create(
        _CREATE_SIZE, 0, unique, nodeid, 0, entry_valid, attr_valid, 0, 0,
        ino, st.st_size, st.st_blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        st.st_mode, nlink, st.st_uid, st.st_gid, st.st_rdev, st.st_blksize, 0,
        fh, open_flags, backing_id,
    )


def written(unique: int, size: int) -> bytes:
    """WRITE, and COPY_FILE_RANGE, whose count has 32 bits."""
    return _pack_write(_WRITE_SIZE, 0, unique, size)


def copied(unique: int, size: int) -> bytes:
    """COPY_FILE_RANGE_64."""
    return _COPIED.pack(_COPIED.size, 0, unique, size)


def offset(unique: int, value: int) -> bytes:
    """LSEEK."""
    return _OFFSET.pack(_OFFSET.size, 0, unique, value)


def xattr_size(unique: int, size: int) -> bytes:
    """GETXATTR and LISTXATTR of size 0: how many bytes there are."""
    return _XATTR_SIZE.pack(_XATTR_SIZE.size, 0, unique, size)


def statfs(unique: int, st: FileSystemStatus) -> bytes:
    return _STATFS.pack(
        _STATFS.size, 0, unique, st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree,
        st.f_bsize, st.f_namemax, st.f_frsize,
    )


# statx(2)'s stx_mask.
_STATX_BASIC_STATS = 0x7FF
_STATX_BTIME = 0x800


def statx(
    unique: int, ino: int, nlink: int, st: Status, btime_ns: int | None, attr_valid: int,
    attributes: int = 0, attributes_mask: int = 0,
) -> bytes:
    """STATX. `btime_ns`: when the file was made; None where nobody knows. The kernel fills in the device itself."""
    rdev = st.st_rdev
    return _STATX.pack(
        _STATX.size, 0, unique, attr_valid, 0, 0,
        _STATX_BASIC_STATS | (0 if btime_ns is None else _STATX_BTIME), st.st_blksize, attributes,
        nlink, st.st_uid, st.st_gid, st.st_mode, ino, st.st_size, st.st_blocks, attributes_mask,
        *divmod(st.st_atime_ns, _NS), *divmod(btime_ns or 0, _NS),
        *divmod(st.st_ctime_ns, _NS), *divmod(st.st_mtime_ns, _NS),
        rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00, 0, 0,
    )


def ioctl(unique: int, result: int, payload: bytes) -> bytes:
    """IOCTL: what ioctl(2) returns, and what it leaves in its argument, at most fuse_ioctl_in.out_size bytes.

    FS_IOC_GETFLAGS and FS_IOC_FSGETXATTR must leave exactly as many, unless they fail (fuse_priv_ioctl): else EIO.
    """
    return _IOCTL.pack(_IOCTL.size + len(payload), 0, unique, result, 0, 0, 0) + payload


def init(unique: int, fields: tuple[int, ...]) -> bytes:
    """INIT: init.Agreement.reply."""
    return _INIT.pack(_INIT.size, 0, unique, *fields)


def notify_inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """Forget the attributes of a node, and its cached pages from `offset`: all where `length` is 0, none where `offset`
    is negative. The write fails with ENOENT if the kernel does not know the node.
    """
    return _INVAL_INODE.pack(_INVAL_INODE.size, abi.FUSE_NOTIFY_INVAL_INODE, 0, nodeid, offset, length)


def notify_store(nodeid: int, offset: int, size: int) -> bytes:
    """What goes before `size` bytes that the kernel is to have in its cache of a node, from `offset`; beyond its end it
    would grow (fuse_notify_store(), fs/fuse/dev.c). The write fails with ENOENT if the kernel does not know the node.
    """
    return _STORE.pack(_STORE.size + size, abi.FUSE_NOTIFY_STORE, 0, nodeid, offset, size)


def notify_inval_entry(parent: int, name: bytes, flags: int) -> bytes:
    """Forget one name, or that there is none. `flags`: 0, or FUSE_EXPIRE_ONLY: only ask again at its next use."""
    size = _INVAL_ENTRY.size + len(name) + 1
    return _INVAL_ENTRY.pack(size, abi.FUSE_NOTIFY_INVAL_ENTRY, 0, parent, len(name), flags) + name + b"\0"


def notify_delete(parent: int, child: int, name: bytes) -> bytes:
    """The name was removed, if it is still the node `child`: whoever watches it (inotify) is told."""
    size = _DELETE.size + len(name) + 1
    return _DELETE.pack(size, abi.FUSE_NOTIFY_DELETE, 0, parent, child, len(name)) + name + b"\0"


def notify_inc_epoch() -> bytes:
    """Every name and cached directory known so far is to be asked for again (7.44)."""
    return _pack_header(_HEADER_SIZE, abi.FUSE_NOTIFY_INC_EPOCH, 0)


def notify_prune(nodeids: list[int]) -> bytes:
    """Let go of these nodes if nothing uses them (7.45)."""
    count = len(nodeids)
    return Struct(f"{_PRUNE.format}{count}Q").pack(
        _PRUNE.size + 8 * count, abi.FUSE_NOTIFY_PRUNE, 0, count, *nodeids
    )
