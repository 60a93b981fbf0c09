"""`unionfs umount`: take the mount away and wait until its server has ended. Imports neither trio nor pyfuse3."""

from __future__ import annotations

import errno
import os
import select

from unionfs.linux.mounts import mounted_at
from unionfs.transport import control, device

# A server has nothing to do after the last reference is gone but to close its branches.
DEADLINE_SECONDS = 30.0


def unmount(mountpoint: str) -> None:
    """Unmount `mountpoint`; when this returns, its branches are free for another union.

    Raises OSError(errno, what is wrong; what to do, mountpoint): EINVAL, no union is mounted there; EBUSY, it is in
    use; ETIMEDOUT, it is gone from here but another mount namespace still holds it.
    """
    target = os.path.realpath(mountpoint)
    point = mounted_at(target)
    if point is None or point.fstype != device.FSTYPE:
        raise OSError(errno.EINVAL, "no union is mounted there", mountpoint)
    # Before the unmount: afterwards the server may be gone and its process id another's.
    server = control.find(point.device)
    try:
        _detach(target, mountpoint)
        if server is not None and not _ended(server):
            raise OSError(
                errno.ETIMEDOUT,
                f"unmounted, but its server {server.pid} has not ended: another mount namespace holds the mount",
                mountpoint,
            )
    finally:
        if server is not None:
            server.close()


def _detach(target: str, mountpoint: str) -> None:
    try:
        device.detach(target)
    except OSError as error:
        if error.errno == errno.EBUSY:
            text = f"busy; end what uses it (see 'fuser -vm {mountpoint}') and try again"
        else:
            text = error.strerror or str(error)
        raise OSError(error.errno, text, mountpoint) from None


def _ended(server: control.Server) -> bool:
    poll = select.poll()
    poll.register(server.pidfd, select.POLLIN)
    return bool(poll.poll(DEADLINE_SECONDS * 1000))
