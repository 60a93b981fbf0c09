"""Taking a dm device away that somebody may still hold open."""

from __future__ import annotations

import errno
import time

from drivers.devicemapper import ioctl, nodes

# What holds a device for a moment (udev, blkid) is gone by then; what holds it longer keeps it.
PATIENCE = 2.0  # seconds
PAUSE = 0.02


def remove(name: str, *, deferred: bool = False, patience: float = PATIENCE) -> bool:
    """Remove a dm device: try for a while if it is open. Whether it is gone; with `deferred`, it goes when it is closed
    if it is not. No such device is fine."""
    device = ioctl.status(name)
    if device is None:
        return True
    deadline = time.monotonic() + patience
    while True:
        try:
            ioctl.remove(name)
            nodes.forget(device)
            return True
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            if error.errno != errno.EBUSY:
                raise
        if time.monotonic() >= deadline:
            break
        time.sleep(PAUSE)  # closing a block device is not an event that can be waited for
    if deferred:
        try:
            return ioctl.remove(name, deferred=True)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return True
    return False
