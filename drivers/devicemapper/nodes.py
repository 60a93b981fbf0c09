"""Device nodes of dm devices where nobody else makes them: in a devtmpfs the kernel does, in a plain /dev (a chroot's)
nobody."""

from __future__ import annotations

import os
import stat

from drivers.devicemapper.ioctl import Device


def ensure(device: Device) -> str:
    """The path of an active device's node, made if it is missing or an older device's."""
    path = device.node
    while not _is(path, device.rdev):
        try:
            os.mknod(path, stat.S_IFBLK | 0o600, device.rdev)
        except FileExistsError:
            # It is left from a device that had this number on another major, or another process was quicker.
            if not _is(path, device.rdev):
                os.unlink(path)
    return path


def forget(device: Device) -> None:
    """Take away the node of a device that has been removed, if it has not gone by itself."""
    if os.path.exists(f"/sys/dev/block/{device.number}"):
        return  # the number has been given again already
    try:
        if _is(device.node, device.rdev):
            os.unlink(device.node)
    except FileNotFoundError:
        pass


def _is(path: str, rdev: int) -> bool:
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == rdev
