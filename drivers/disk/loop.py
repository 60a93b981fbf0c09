"""Loop devices: a file as a block device. See loop(4), and drivers/block/loop.c.

    attach    a device that stays until detach()
    attached  a device for the time of a `with`, and for as long as it is mounted or in a device-mapper table after it

The second needs no taking back: it is made with LO_FLAGS_AUTOCLEAR, and the kernel detaches it when the last opener
closes it. A process that is killed between attaching and mounting leaves nothing.

Two devices on one file would be two caches of the same blocks: whoever may race with another for a file takes a lock
around find() and attach(), or around attached(). Needs root. Raises OSError, and Unavailable where the kernel has
no loop devices.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from drivers.errors import Unavailable

# linux/loop.h
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_SET_CAPACITY = 0x4C07
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

# struct loop_info64: lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit; lo_number, lo_encrypt_type,
# lo_encrypt_key_size, lo_flags; lo_file_name, lo_crypt_name, lo_encrypt_key; lo_init.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_FLAGS_OFFSET = struct.calcsize("=5Q3I")
# struct loop_config: fd, block_size; info; __reserved.
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
assert (_INFO.size, _CONFIG.size) == (232, 304)

_MISC_LOOP_CONTROL = os.makedev(10, 237)  # linux/miscdevice.h, LOOP_CTRL_MINOR
# Each attempt may be lost to somebody who has just attached the device that we were offered.
_ATTEMPTS = 100


def attach(path: str, *, read_only: bool = False, direct_io: bool = True) -> str:
    """Attach the file to a free device and give that, "/dev/loopN".

    With `direct_io` the file's blocks are not cached a second time; a file system that cannot do it is read and
    written through its cache all the same.
    """
    device, fd = _attach(path, (LO_FLAGS_READ_ONLY if read_only else 0) | (LO_FLAGS_DIRECT_IO if direct_io else 0))
    os.close(fd)
    return device


@contextmanager
def attached(path: str, *, direct_io: bool = True) -> Iterator[str]:
    """A device of the file, the one it has or a new one, for the time of the `with` and for as long as it is in use."""
    found = _find(path)
    device, fd = found or _attach(path, LO_FLAGS_AUTOCLEAR | (LO_FLAGS_DIRECT_IO if direct_io else 0))
    try:
        yield device
    finally:
        os.close(fd)


def find(path: str) -> str | None:
    """The device that the file is attached to, by whatever name; None if there is none."""
    found = _find(path)
    if found is None:
        return None
    device, fd = found
    os.close(fd)
    return device


def detach(device: str, path: str = "") -> None:
    """Detach the device, as soon as nothing has it open or mounted. One that is not attached is fine.

    With `path`, only if it is still that file's: to be given by whoever keeps a device's name for longer than a lock,
    for the name may have become another's meanwhile.
    """
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return
        raise
    try:
        # While we have it open it cannot be given to another file.
        if not path or _backing(fd) == _identity(os.stat(path)):
            fcntl.ioctl(fd, LOOP_CLR_FD, 0)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    finally:
        os.close(fd)


def set_capacity(device: str) -> None:
    """Make the device as large as its file has become."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, LOOP_SET_CAPACITY, 0)
    finally:
        os.close(fd)


def set_autoclear(device: str, value: bool) -> None:
    """Let the device go when the last opener closes it, or stay until detach()."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = bytearray(_INFO.size)
        fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
        (flags,) = struct.unpack_from("=I", info, _FLAGS_OFFSET)
        wanted = flags | LO_FLAGS_AUTOCLEAR if value else flags & ~LO_FLAGS_AUTOCLEAR
        if wanted != flags:
            struct.pack_into("=I", info, _FLAGS_OFFSET, wanted)
            fcntl.ioctl(fd, LOOP_SET_STATUS64, info)
    finally:
        os.close(fd)


def _attach(path: str, flags: int) -> tuple[str, int]:
    """The device, and a descriptor of it."""
    is_read_only = bool(flags & LO_FLAGS_READ_ONLY)
    access = (os.O_RDONLY if is_read_only else os.O_RDWR) | os.O_CLOEXEC
    file = os.open(path, access)
    try:
        name = os.path.realpath(path).encode("utf-8", "surrogateescape")[:63]
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
        for _ in range(_ATTEMPTS):
            device = _free()
            try:
                fd = os.open(device, access)
            except OSError as error:
                if error.errno in (errno.ENXIO, errno.ENOENT):  # it is being detached, or removed (LOOP_CTL_REMOVE)
                    continue
                raise
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, _CONFIG.pack(file, 0, info))
                return device, fd
            except OSError as error:
                os.close(fd)
                # EBUSY: another process has attached it between LOOP_CTL_GET_FREE and here.
                if error.errno not in (errno.EBUSY, errno.ENXIO):
                    raise OSError(error.errno, error.strerror, path) from None
            except BaseException:
                os.close(fd)
                raise
    finally:
        os.close(file)
    raise OSError(errno.EBUSY, f"{_ATTEMPTS} free loop devices were taken by others before we could", path)


def _find(path: str) -> tuple[str, int] | None:
    wanted = _identity(os.stat(path))
    for name in os.listdir("/sys/block"):
        # The directory `loop` is there while a file is attached.
        if not (name.startswith("loop") and os.path.isdir(f"/sys/block/{name}/loop")):
            continue
        try:
            fd = os.open(_node(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it was detached meanwhile
        try:
            if _backing(fd) == wanted:
                return f"/dev/{name}", fd
        except OSError:
            pass  # ENXIO: likewise
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    return None


def _backing(fd: int) -> tuple[int, int, int]:
    """Which file is attached: major and minor number of its file system, and inode. ENXIO if none."""
    info = bytearray(_INFO.size)
    fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
    device, inode = struct.unpack_from("=2Q", info)
    # huge_encode_dev(), linux/kdev_t.h
    return device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00, inode


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino


def _free() -> str:
    try:
        if not os.path.exists("/dev/loop-control"):
            _make_node("/dev/loop-control", stat.S_IFCHR, _MISC_LOOP_CONTROL)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"there are no loop devices here ({error.strerror}): modprobe loop") from error
    try:
        number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
    return _node(f"loop{number}")


def _node(name: str) -> str:
    """The path of the device. The node is made where /dev is a plain directory, as in a chroot, and none appear."""
    path = f"/dev/{name}"
    if not os.path.exists(path):
        try:
            with open(f"/sys/block/{name}/dev", encoding="ascii") as numbers:
                major, minor = map(int, numbers.read().split(":"))
        except FileNotFoundError:
            return path  # removed meanwhile
        _make_node(path, stat.S_IFBLK, os.makedev(major, minor))
    return path


def _make_node(path: str, kind: int, device: int) -> None:
    try:
        os.mknod(path, kind | 0o600, device)
    except FileExistsError:
        pass  # another process, or devtmpfs, was faster
