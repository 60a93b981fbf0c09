"""Whether a block device that we are given is free to be written over: nothing uses it, and there is nothing on it.

File systems, RAIDs, encrypted volumes and tables of partitions say what they are at the beginning of a disk or at its
end (an array of mdadm's version 1.2 at 4 KiB, of 0.90 and 1.0 in the last 128; a GUID table at both; btrfs at 64 KiB,
ZFS in half a MiB at both, VMFS after the first MiB). So a disk on which both are zero is new to everybody. What any
other holds, blkid(8) says.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from drivers.devicemapper import direct
from drivers.disk.programs import find
from drivers.errors import Unavailable
from unionfs.linux.mounts import mountinfo

# At each end.
WINDOW = 4 << 20
_PIECE = 1 << 20
FORCE = "dm.directlvm_device_force"


def check_unused(path: str, fd: int) -> None:
    """Raise Unavailable if something has the device: a file system, another device, swap.

    Opened for itself alone (O_EXCL, open(2)), a device is refused while something has claimed it or a part of it.
    """
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise Unavailable(f"cannot use the block device {path}: {error.strerror}") from error
        raise Unavailable(f"the block device {path} is in use: {_user(os.fstat(fd).st_rdev)}") from None


def check_blank(path: str, fd: int) -> None:
    """Raise Unavailable if there is anything at either end of the device."""
    size = os.lseek(fd, 0, os.SEEK_END)
    for start, end in _windows(size):
        for position in range(start, end, _PIECE):
            if any(direct.read(fd, position, min(_PIECE, end - position))):
                raise Unavailable(
                    f"there is something on {path}{_name(path)}: if it may be lost, say so by {FORCE}=true"
                )


def wipe(fd: int) -> None:
    """Make both ends zero, so that nobody takes the device for what it was."""
    size = os.lseek(fd, 0, os.SEEK_END)
    for start, end in _windows(size):
        for position in range(start, end, _PIECE):
            direct.write(fd, position, bytes(min(_PIECE, end - position)))


def _windows(size: int) -> list[tuple[int, int]]:
    size -= size % direct.BLOCK
    if size <= 2 * WINDOW:
        return [(0, size)]
    return [(0, WINDOW), (size - WINDOW, size)]


def _name(path: str) -> str:
    """What blkid(8) takes it for, as " (ext4)"; "" if blkid does not know it, or is not installed."""
    import subprocess  # late: only for a message

    program = find("blkid")
    if program is None:
        return ""
    command = [program, "-p", "-s", "TYPE", "-s", "PTTYPE", "-s", "LABEL", "-o", "value", path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    words = " ".join("".join(filter(str.isprintable, line)) for line in done.stdout.splitlines() if line)
    return f" ({words})" if words else ""


def _user(rdev: int) -> str:
    number = f"{os.major(rdev)}:{os.minor(rdev)}"
    for point in mountinfo():
        if point.device == number:
            return f"it is mounted at {point.target}"
    if holders := _listed(f"/sys/dev/block/{number}/holders"):
        return f"it is part of {', '.join(holders)}"
    if rdev in _swaps():
        return "it is swap"
    return "something has it, or a part of it, open for itself alone"


def _swaps() -> set[int]:
    found = set()
    with open("/proc/swaps", encoding="utf-8", errors="replace") as lines:
        for line in list(lines)[1:]:
            with suppress(OSError):
                found.add(os.stat(line.split()[0]).st_rdev)
    return found


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
