"""File system calls: openat2, renameat2, fallocate, statx, syncfs, reflinks, inode flags, linking an unnamed file,
names by descriptor and opening by them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from unionfs.linux import consts, libc

_openat2 = libc.syscall(consts.NR_openat2, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_renameat2 = libc.bind(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_fallocate = libc.bind("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_syncfs = libc.bind("syncfs", ctypes.c_int)
_fstatfs = libc.bind("fstatfs", ctypes.c_int, ctypes.c_void_p)
_statx = libc.bind("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)

# struct statx, linux/stat.h: stx_mask, stx_attributes, stx_attributes_mask, stx_btime's seconds and nanoseconds.
_STATX = struct.Struct("<I4xQ40xQ16xqI")
_STATX_SIZE = 256
_STATFS_SIZE = 256  # more than any machine's struct statfs
_FLAGS = struct.Struct("<I")
_FSXATTR_SIZE = 28


class open_how(ctypes.Structure):
    """linux/openat2.h"""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def openat2(dirfd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dirfd` and return a descriptor, close-on-exec always. See openat2(2).

    EAGAIN (a rename raced with `..` resolution) is retried a bounded number of times.
    """
    how = open_how(flags | os.O_CLOEXEC, mode, resolve)
    for attempt in range(16):
        try:
            return _openat2(dirfd, path, ctypes.byref(how), ctypes.sizeof(how))
        except BlockingIOError:
            if attempt == 15:
                raise
    raise AssertionError("unreachable")


def renameat2(src_dirfd: int, src: bytes, dst_dirfd: int, dst: bytes, flags: int = 0) -> None:
    """rename(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    _renameat2(src_dirfd, src, dst_dirfd, dst, flags)


def ficlone(dst_fd: int, src_fd: int) -> None:
    """Share all of `src_fd`'s extents with `dst_fd` (ioctl_ficlone(2)). EOPNOTSUPP, EXDEV or EINVAL: copy instead."""
    fcntl.ioctl(dst_fd, consts.FICLONE, src_fd)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). EOPNOTSUPP where the file system lacks the mode, unlike posix_fallocate(3), which then writes."""
    _fallocate(fd, mode, offset, length)


def syncfs(fd: int) -> None:
    """Write everything of the file system that `fd` is on to the disk. See syncfs(2)."""
    _syncfs(fd)


def btrfs_commit(fd: int) -> None:
    """Commit the btrfs transaction under way, and wait for it: every change of names and attributes made so far is then
    on the disk; of the files' bytes only those that were synced. `fd` is any file of the file system."""
    transaction = bytearray(8)
    fcntl.ioctl(fd, consts.BTRFS_IOC_START_SYNC, transaction)
    fcntl.ioctl(fd, consts.BTRFS_IOC_WAIT_SYNC, bytes(transaction))


class Statx(NamedTuple):
    """What statx(2) tells that stat(2) does not. `btime_ns` is the time of birth in nanoseconds, None where the file
    system keeps none; of `attributes` (STATX_ATTR_*) only the bits in `attributes_mask` mean something."""

    btime_ns: int | None
    attributes: int
    attributes_mask: int


def statx(dirfd: int, name: bytes) -> Statx:
    """statx(2) of `name` in `dirfd`, not followed; with an empty name, of the file `dirfd` itself."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _statx(dirfd, name, consts.AT_SYMLINK_NOFOLLOW | consts.AT_EMPTY_PATH, consts.STATX_BTIME, buffer)
    mask, attributes, attributes_mask, seconds, nanoseconds = _STATX.unpack_from(buffer)
    btime_ns = seconds * 10**9 + nanoseconds if mask & consts.STATX_BTIME else None
    return Statx(btime_ns, attributes, attributes_mask)


def get_flags(fd: int) -> int:
    """The inode's FS_*_FL (ioctl_iflags(2)). ENOTTY or EOPNOTSUPP where it has none.

    The ioctl is declared with a long and passes an int (ioctl_getflags(), fs/file_attr.c).
    """
    flags = bytearray(8)
    fcntl.ioctl(fd, consts.FS_IOC_GETFLAGS, flags)
    return int(_FLAGS.unpack_from(flags)[0])


def set_flags(fd: int, flags: int) -> None:
    """EOPNOTSUPP for a flag that the file system does not have, EPERM without CAP_LINUX_IMMUTABLE."""
    fcntl.ioctl(fd, consts.FS_IOC_SETFLAGS, _FLAGS.pack(flags) + bytes(4))


def get_fsxattr(fd: int) -> bytes:
    """The inode's struct fsxattr (linux/fs.h): five 32-bit numbers (fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid,
    fsx_cowextsize) and 8 bytes of padding."""
    attributes = bytearray(_FSXATTR_SIZE)
    fcntl.ioctl(fd, consts.FS_IOC_FSGETXATTR, attributes)
    return bytes(attributes)


def set_fsxattr(fd: int, attributes: bytes) -> None:
    if len(attributes) != _FSXATTR_SIZE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    fcntl.ioctl(fd, consts.FS_IOC_FSSETXATTR, attributes)


def file_system_id(fd: int) -> int:
    """64 bits that tell the file system of `fd` from others, even after a remount and on a device of another number.
    (`fd` may be O_PATH only on ext4, btrfs and others whose f_fsid is made of their uuid.)

    XFS, squashfs and others answer statfs(2) with the device number; then the uuid is asked for (Linux 6.9,
    FS_IOC_GETFSUUID), and where there is none its size has to do.
    """
    status = os.fstatvfs(fd)
    device = os.fstat(fd).st_dev
    major, minor = os.major(device), os.minor(device)
    by_device = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12  # new_encode_dev(), linux/kdev_t.h
    if status.f_fsid not in (0, by_device):
        return int(status.f_fsid)
    import hashlib  # it loads OpenSSL: 10 ms that every command would pay

    identity = b"%d %d" % (status.f_frsize, status.f_blocks)
    uuid = bytearray(17)  # struct fsuuid2: length, 16 bytes
    try:
        fcntl.ioctl(fd, consts.FS_IOC_GETFSUUID, uuid)
        identity = bytes(uuid[1 : 1 + uuid[0]])
    except OSError:
        pass  # an older kernel, or a file system without a uuid
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "little")


def file_system_type(fd: int) -> int:
    """The f_type of fstatfs(2), which is the structure's first field: a number of linux/magic.h."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    _fstatfs(fd, buffer)
    return int(ctypes.c_ulong.from_buffer(buffer).value)


def fd_path(fd: int, name: bytes = b"") -> bytes:
    """A path that names what `fd` is open on (or `name` in that directory), for calls without a dirfd form.

    It needs /proc. With O_PATH|O_NOFOLLOW descriptors of symbolic links the magic link ends the walk on the link
    itself (proc(5)).
    """
    return b"/proc/self/fd/%d/%s" % (fd, name) if name else b"/proc/self/fd/%d" % fd


def reopen(fd: int, flags: int) -> int:
    """A descriptor opened with `flags` on the very file that `fd` is open on (O_PATH will do), not by any name that
    somebody could change. It waits for nobody: a FIFO is open at once, or ENXIO; a lease gives EWOULDBLOCK."""
    return os.open(fd_path(fd), flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def link_fd(fd: int, dst_dirfd: int, dst: bytes) -> None:
    """Give the unnamed file `fd` (O_TMPFILE) the name `dst`. EEXIST if the name is taken. See open(2), O_TMPFILE."""
    os.link(fd_path(fd), dst, dst_dir_fd=dst_dirfd, follow_symlinks=True)


def waits_for_disk(fd: int, offset: int) -> bool:
    """Whether reading the byte at `offset` would wait for a disk (preadv2(2), RWF_NOWAIT): a hint for the rest of a
    read. False on a file system that cannot tell (tmpfs is one)."""
    try:
        os.preadv(fd, (bytearray(1),), offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False  # EOPNOTSUPP; or the read itself will tell
    return False
