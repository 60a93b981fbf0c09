"""`unionfs umount`: take the mount away and wait until its server has ended. Imports neither trio nor pyfuse3.

umount(2) does not wait for it: DESTROY is sent to servers of fuseblk and virtiofs only, others find their connection
aborted (fuse_conn_destroy(), fs/fuse/inode.c), and a moment passes until they have closed their branches.
"""

from __future__ import annotations

import errno
import select

from unionfs.linux.mounts import mount_of, mountinfo
from unionfs.linux.processes import is_stopped
from unionfs.transport import control, device

# A server has nothing to do after the last reference is gone but to close its branches.
DEADLINE_SECONDS = 30.0


def unmount(mountpoint: str, *, elsewhere: bool = False) -> None:
    """Unmount `mountpoint`; when this returns, its branches are free for another union; or, if that is allowed by
    `elsewhere`, it is still mounted at another place.

    A server that is stopped keeps nobody waiting: a map has been written back before its last user lets go of it
    (fuse_vma_close(), fs/fuse/file.c).

    Raises OSError(errno, what is wrong; what to do, mountpoint): EINVAL, no union is mounted there; EBUSY, it is in
    use, or gone from here and still mounted at another place; ETIMEDOUT, it is gone from here but its server has not
    ended: another mount namespace holds it, or the server is stopped.
    """
    try:
        point = mount_of(mountpoint)
    except (FileNotFoundError, NotADirectoryError):
        point = None
    identity = None if point is None else device.identity_of(point)
    if point is None or identity is None:
        raise OSError(errno.EINVAL, "no union is mounted there", mountpoint)
    # Before the unmount: afterwards the server may be gone and its process id another's.
    try:
        server = control.find(identity)
    except TimeoutError:
        _detach(point.target, mountpoint)
        raise OSError(errno.ETIMEDOUT, "unmounted, but its server does not answer", mountpoint) from None
    if server is None:
        _detach(point.target, mountpoint)
        return
    try:
        _detach(point.target, mountpoint)
        other = next((p.target for p in mountinfo() if device.identity_of(p) == identity), None)
        if other is None:
            _wait(server, mountpoint)
        elif not elsewhere:
            raise OSError(errno.EBUSY, f"unmounted, but served on: it is also mounted at {other}", mountpoint)
    finally:
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


def _wait(server: control.Server, mountpoint: str) -> None:
    if not is_stopped(server.pid) and _ended(server):
        return
    why = "another mount namespace holds the mount, or a branch's file system does not answer"
    if is_stopped(server.pid):
        why = f"it is stopped; 'kill -CONT {server.pid}' lets it end"
    raise OSError(errno.ETIMEDOUT, f"unmounted, but its server {server.pid} has not ended: {why}", mountpoint)


def _ended(server: control.Server) -> bool:
    poll = select.poll()
    poll.register(server.pidfd, select.POLLIN)
    return bool(poll.poll(DEADLINE_SECONDS * 1000))
