"""The ioctls of /dev/fuse: more descriptors of one connection, and files that the kernel reads and writes by itself.

linux/fuse.h; fs/fuse/dev.c, backing.c. The last two are on the path of every open: what can be kept is not built anew.
"""

from __future__ import annotations

import fcntl
import os
import struct

from unionfs.linux import consts

_U32 = struct.Struct("=I")
_BACKING_MAP = struct.Struct("=iIQ")  # struct fuse_backing_map: fd, flags, padding


def clone(fuse_fd: int) -> int:
    """One more descriptor of the connection of `fuse_fd`, close-on-exec; what is read from it is answered on it.

    Raises OSError: ENOENT or EACCES, /dev/fuse; EPERM or (before Linux 6.18) EINVAL, `fuse_fd` is not mounted.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, consts.FUSE_DEV_IOC_CLONE, _U32.pack(fuse_fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def backing_open(fuse_fd: int, fd: int) -> int:
    """Lend the regular file `fd` to the kernel and return its backing id, positive; `fd` may be closed then.

    Raises OSError: EPERM, without CAP_SYS_ADMIN, or FUSE_PASSTHROUGH was not agreed on; ELOOP, the file's file system
    is stacked deeper than INIT's max_stack_depth allows; EISDIR, EINVAL or EOPNOTSUPP, not a regular file; ENOTTY,
    Linux before 6.9.
    """
    # A bytearray, because for bytes fcntl.ioctl returns the buffer and not what the call returned.
    backing_id: int = fcntl.ioctl(fuse_fd, consts.FUSE_DEV_IOC_BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0)))
    return backing_id


def backing_close(fuse_fd: int, backing_id: int) -> None:
    """Take the id back; files that are open by it go on. Raises OSError: ENOENT, there is no such id."""
    fcntl.ioctl(fuse_fd, consts.FUSE_DEV_IOC_BACKING_CLOSE, _U32.pack(backing_id))
