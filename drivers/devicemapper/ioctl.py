"""The device-mapper's ioctls (linux/dm-ioctl.h, drivers/md/dm-ioctl.c), one function each, without policy.

The ioctls themselves and not libdm or dmsetup, for three reasons. An ioctl gives an errno, and whether that is EBUSY,
ENODATA or EOPNOTSUPP decides what to do next, while dmsetup prints it in words. Nothing here waits for udev: libdm
hands udev a semaphore (a "cookie") and sleeps on it until a rule gives it back, for ever if there is no udev or its
worker was killed. And a snapshot takes seven of these, each of which would be a process.

What udev is told is `UDEV_FLAGS`: that these devices are private, so that none of its rules opens one to see what is
in it (an open device cannot be removed), or makes links. The cookie's own half is 0: nobody waits.

Failures are OSError with the kernel's errno and the device's name: ENXIO no such device, EBUSY the name is taken or
the device is open, ENODATA no such thin device in the pool, EINVAL a table that the target refuses (dmesg says why).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import NamedTuple

CONTROL = "/dev/mapper/control"
SECTOR = 512

DM_LIST_DEVICES_CMD = 2
DM_DEV_CREATE_CMD = 3
DM_DEV_REMOVE_CMD = 4
DM_DEV_SUSPEND_CMD = 6
DM_DEV_STATUS_CMD = 7
DM_TABLE_LOAD_CMD = 9
DM_TABLE_STATUS_CMD = 12
DM_TARGET_MSG_CMD = 14
DM_GET_TARGET_VERSION_CMD = 17

DM_READONLY_FLAG = 1 << 0
DM_SUSPEND_FLAG = 1 << 1
DM_STATUS_TABLE_FLAG = 1 << 4
DM_ACTIVE_PRESENT_FLAG = 1 << 5
DM_BUFFER_FULL_FLAG = 1 << 8
DM_SKIP_LOCKFS_FLAG = 1 << 10
DM_NOFLUSH_FLAG = 1 << 11
DM_DEFERRED_REMOVE = 1 << 17

# libdevmapper.h; udev's 10-dm.rules read them from the upper half of the cookie. The last says that the flags come
# from whoever made the device, so that they hold for later events too.
DM_UDEV_DISABLE_DM_RULES_FLAG = 0x1
DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG = 0x2
DM_UDEV_DISABLE_DISK_RULES_FLAG = 0x4
DM_UDEV_DISABLE_OTHER_RULES_FLAG = 0x8
DM_UDEV_PRIMARY_SOURCE_FLAG = 0x40
DM_UDEV_FLAGS_SHIFT = 16
UDEV_FLAGS = (
    DM_UDEV_DISABLE_DM_RULES_FLAG
    | DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
    | DM_UDEV_DISABLE_DISK_RULES_FLAG
    | DM_UDEV_DISABLE_OTHER_RULES_FLAG
    | DM_UDEV_PRIMARY_SOURCE_FLAG
) << DM_UDEV_FLAGS_SHIFT

# struct dm_ioctl: version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name,
# uuid, data[7]. The size is part of every ioctl's number.
DM_IOCTL = struct.Struct("=3IIIIiIIIQ128s129s7s")
assert DM_IOCTL.size == 312
# struct dm_target_spec: sector_start, length, status, next, target_type
DM_TARGET_SPEC = struct.Struct("=QQiI16s")
assert DM_TARGET_SPEC.size == 40
# struct dm_name_list: dev, next, and the name; struct dm_target_msg: sector, and the message
DM_NAME_LIST = struct.Struct("=QI")
DM_TARGET_MSG = struct.Struct("=Q")
# struct dm_target_versions: next, version[3], and the name
DM_TARGET_VERSIONS = struct.Struct("=I3I")
DM_NAME_LEN = 128

# The oldest interface that has what is used here; the kernel refuses another major number, or a newer minor one.
_VERSION = (4, 0, 0)
_IOWR, _TYPE = 3 << 30, 0xFD << 8
_REPLY = 16384


class Device(NamedTuple):
    """What DM_DEV_STATUS says of a device: its number, how often it is open, DM_*_FLAG; and a uuid, which stays (LVM's
    are "LVM-…"), "" if whoever made it gave it none."""

    rdev: int
    open_count: int
    flags: int
    uuid: str = ""

    @property
    def node(self) -> str:
        """The name that devtmpfs gives it (and `nodes.ensure` where /dev is not a devtmpfs)."""
        return f"/dev/dm-{os.minor(self.rdev)}"

    @property
    def number(self) -> str:
        """How a table names it."""
        return f"{os.major(self.rdev)}:{os.minor(self.rdev)}"

    @property
    def is_suspended(self) -> bool:
        return bool(self.flags & DM_SUSPEND_FLAG)

    @property
    def is_read_only(self) -> bool:
        return bool(self.flags & DM_READONLY_FLAG)

    @property
    def is_going(self) -> bool:
        """It is removed as soon as nobody has it open."""
        return bool(self.flags & DM_DEFERRED_REMOVE)

    @property
    def has_table(self) -> bool:
        return bool(self.flags & DM_ACTIVE_PRESENT_FLAG)


class Target(NamedTuple):
    """A line of a table: `length` sectors of 512 bytes, from the device's first one on."""

    length: int
    type: str
    parameters: str


def create(name: str, uuid: str = "") -> None:
    """A device without a table. EBUSY if its name or uuid is taken."""
    _call(DM_DEV_CREATE_CMD, name, uuid=uuid)


def load(name: str, target: Target, *, read_only: bool = False) -> None:
    """Give the device a table, which takes effect at the next resume(). ENODATA: the thin device is not in its pool."""
    parameters = target.parameters.encode() + b"\0"
    parameters += bytes(-len(parameters) % 8)
    spec = DM_TARGET_SPEC.pack(0, target.length, 0, DM_TARGET_SPEC.size + len(parameters), target.type.encode())
    _call(DM_TABLE_LOAD_CMD, name, DM_READONLY_FLAG if read_only else 0, spec + parameters, target_count=1)


def suspend(name: str) -> None:
    """Wait for what is being written, freeze a file system on the device, and hold further requests back."""
    _call(DM_DEV_SUSPEND_CMD, name, DM_SUSPEND_FLAG)


def suspend_pool(name: str) -> None:
    """As suspend(), without looking for a file system: there is none on a pool itself."""
    _call(DM_DEV_SUSPEND_CMD, name, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG)


def resume(name: str) -> None:
    """Swap a loaded table in, and let requests through."""
    _call(DM_DEV_SUSPEND_CMD, name, event_nr=UDEV_FLAGS)


def remove(name: str, *, deferred: bool = False) -> bool:
    """Remove the device: True if it is gone, False if it goes when it is closed (only with `deferred`, else EBUSY)."""
    flags, _ = _call(DM_DEV_REMOVE_CMD, name, DM_DEFERRED_REMOVE if deferred else 0, event_nr=UDEV_FLAGS)
    return not flags.is_going


def status(name: str) -> Device | None:
    """The device, or None if there is none of this name."""
    try:
        return _call(DM_DEV_STATUS_CMD, name)[0]
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def table(name: str) -> Target:
    """The live table of a device that has one line."""
    return _table(name, DM_STATUS_TABLE_FLAG)


def target_status(name: str) -> Target:
    """The live table, with what the target says of its state in place of the parameters. A pool commits its metadata
    first, so the numbers are up to date."""
    return _table(name, 0)


def message(name: str, text: str) -> None:
    """Say something to the device's target."""
    _call(DM_TARGET_MSG_CMD, name, payload=DM_TARGET_MSG.pack(0) + text.encode() + b"\0")


def devices() -> dict[str, int]:
    """The numbers of all devices by name."""
    _, reply = _call(DM_LIST_DEVICES_CMD, "")
    return parse_names(reply)


def target_version(target: str) -> tuple[int, int, int] | None:
    """The version of a target type, whose module is loaded if need be; None if the kernel has none (or is older than
    5.1)."""
    try:
        _, reply = _call(DM_GET_TARGET_VERSION_CMD, target)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTTY):
            return None
        raise
    _, major, minor, patch = DM_TARGET_VERSIONS.unpack_from(reply)
    return major, minor, patch


def open_control() -> int:
    """The descriptor that the ioctls go to. Its node is made where devtmpfs did not: the number is in /proc/misc.

    ENOENT, with a sentence, without device-mapper in the kernel; EACCES or EPERM without the right to use it.
    """
    try:
        return os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        number = _misc_number()
        if number is None:
            raise OSError(errno.ENOENT, "this kernel has no device-mapper: modprobe dm_mod", CONTROL) from None
    os.makedirs(os.path.dirname(CONTROL), 0o755, exist_ok=True)
    try:
        os.mknod(CONTROL, stat.S_IFCHR | 0o600, number)
    except FileExistsError:
        pass  # another process was quicker
    return os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)


def parse_names(reply: bytes) -> dict[str, int]:
    """A list of struct dm_name_list, each `next` bytes after the one before; one with dev 0 means none."""
    found: dict[str, int] = {}
    offset = 0
    while True:
        dev, following = DM_NAME_LIST.unpack_from(reply, offset)
        start = offset + DM_NAME_LIST.size
        if dev:
            found[reply[start : reply.index(b"\0", start)].decode()] = _rdev(dev)
        if not following:
            return found
        offset += following


def parse_target(reply: bytes) -> Target:
    """The first struct dm_target_spec of a reply, with the text after it."""
    _, length, _, _, target_type = DM_TARGET_SPEC.unpack_from(reply)
    end = reply.index(b"\0", DM_TARGET_SPEC.size)
    return Target(length, target_type.rstrip(b"\0").decode(), reply[DM_TARGET_SPEC.size : end].decode())


def request(
    name: str, flags: int, payload: bytes, *, target_count: int = 0, event_nr: int = 0, uuid: str = ""
) -> bytearray:
    """A struct dm_ioctl and its payload, in a buffer that a reply fits into."""
    encoded = name.encode()
    if len(encoded) >= DM_NAME_LEN:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    size = max(_REPLY, DM_IOCTL.size + len(payload))
    buffer = bytearray(size)
    DM_IOCTL.pack_into(
        buffer, 0, *_VERSION, size, DM_IOCTL.size, target_count, 0, flags, event_nr, 0, 0, encoded, uuid.encode(), b""
    )
    buffer[DM_IOCTL.size : DM_IOCTL.size + len(payload)] = payload
    return buffer


def _call(
    command: int,
    name: str,
    flags: int = 0,
    payload: bytes = b"",
    *,
    target_count: int = 0,
    event_nr: int = 0,
    uuid: str = "",
) -> tuple[Device, bytes]:
    """One ioctl: the device as the kernel describes it afterwards, and the reply's payload."""
    buffer = request(name, flags, payload, target_count=target_count, event_nr=event_nr, uuid=uuid)
    control = open_control()
    try:
        while True:
            try:
                fcntl.ioctl(control, _IOWR | DM_IOCTL.size << 16 | _TYPE | command, buffer)
            except InterruptedError:
                continue  # suspending can be interrupted, and begun again
            except OSError as error:
                raise OSError(error.errno, error.strerror, name or CONTROL) from None
            fields = DM_IOCTL.unpack_from(buffer)
            data_start, open_count, after, dev = fields[4], fields[6], fields[7], fields[10]
            if not after & DM_BUFFER_FULL_FLAG:
                uuid = fields[12].partition(b"\0")[0].decode(errors="replace")
                return Device(_rdev(dev), open_count, after, uuid), bytes(buffer[data_start:])
            size = 2 * len(buffer)
            buffer = request(name, flags, payload.ljust(size, b"\0"), target_count=target_count, event_nr=event_nr)
    finally:
        os.close(control)


def _table(name: str, flags: int) -> Target:
    device, reply = _call(DM_TABLE_STATUS_CMD, name, flags)
    if not device.has_table:
        raise OSError(errno.ENXIO, "the device has no table", name)
    return parse_target(reply)


def _rdev(dev: int) -> int:
    """huge_encode_dev(), linux/kdev_t.h: the low 32 bits are new_encode_dev()'s."""
    return os.makedev((dev & 0xFFF00) >> 8, (dev & 0xFF) | ((dev >> 12) & 0xFFF00))


def _misc_number() -> int | None:
    with open("/proc/misc", encoding="ascii") as lines:
        for line in lines:
            minor, name = line.split()
            if name == "device-mapper":
                return os.makedev(10, int(minor))
    return None
