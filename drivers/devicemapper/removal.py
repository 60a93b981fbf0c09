"""Taking away a dm device that somebody may still hold open."""

from __future__ import annotations

import errno
import time

from drivers.devicemapper import ioctl, nodes

# Whatever holds a device for a moment (udev, blkid) has let go by then; whatever holds it longer keeps it.
PATIENCE = 2.0  # seconds
PAUSE = 0.02


def remove(name: str, *, deferred: bool = False, patience: float = PATIENCE) -> bool:
    """Remove a dm device, trying for a while if it is open. Whether it is gone; if not, with `deferred` it goes when it
    is closed. No such device is fine."""
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
