"""File system calls: openat2, renameat2, reflinks, linking an unnamed file, names by descriptor."""

from __future__ import annotations

import ctypes
import fcntl
import os

from unionfs.linux import consts, libc

_openat2 = libc.syscall(consts.NR_openat2, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_renameat2 = libc.bind(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)


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


def file_system_id(fd: int) -> int:
    """64 bits that tell the file system of `fd` (O_PATH will do only on ext4, btrfs and others whose f_fsid is made of
    their uuid) from others, also after a remount and on a device of another number.

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


def fd_path(fd: int, name: bytes = b"") -> bytes:
    """A path that names what `fd` is open on (or `name` in that directory), for calls without a dirfd form.

    It needs /proc. With O_PATH|O_NOFOLLOW descriptors of symbolic links the magic link ends the walk on the link
    itself (proc(5)).
    """
    return b"/proc/self/fd/%d/%s" % (fd, name) if name else b"/proc/self/fd/%d" % fd


def link_fd(fd: int, dst_dirfd: int, dst: bytes) -> None:
    """Give the unnamed file `fd` (O_TMPFILE) the name `dst`. EEXIST if the name is taken. See open(2), O_TMPFILE."""
    os.link(fd_path(fd), dst, dst_dir_fd=dst_dirfd, follow_symlinks=True)
