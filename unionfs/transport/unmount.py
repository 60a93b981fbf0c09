"""`unionfs umount`: take the mount away and wait until its server has ended. Imports neither trio nor pyfuse3."""

from __future__ import annotations

import errno
import os
import select

from unionfs.linux.mounts import mount_of
from unionfs.linux.processes import is_stopped
from unionfs.transport import control, device

# A server has nothing to do after the last reference is gone but to close its branches.
DEADLINE_SECONDS = 30.0


def unmount(mountpoint: str) -> None:
    """Unmount `mountpoint`; when this returns, its branches are free for another union.

    Raises OSError(errno, what is wrong; what to do, mountpoint): EINVAL, no union is mounted there; EBUSY, it is in
    use; ETIMEDOUT, it is gone from here but its server has not ended: another mount namespace holds it, or the server
    is stopped.
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
        _detach_apart(point.target, mountpoint)
        raise OSError(errno.ETIMEDOUT, "unmounted, but its server does not answer", mountpoint) from None
    if server is None:
        _detach(point.target, mountpoint)
        return
    try:
        if is_stopped(server.pid):
            _detach_apart(point.target, mountpoint)
        else:
            _detach(point.target, mountpoint)
        _wait(server, mountpoint)
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


def _detach_apart(target: str, mountpoint: str) -> None:
    """In a process of its own: what was written through a map has to reach the server first, and nothing ends that wait
    but the server."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _detach(target, mountpoint)
        except OSError as error:
            os.write(writer, b"%d %s" % (error.errno or 0, os.fsencode(error.strerror or "")))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        if not _readable(reader):
            text = "its server does not take what was written to it; continue the server, or kill it"
            raise OSError(errno.ETIMEDOUT, text, mountpoint)
        said = pipe.read()
    os.waitpid(pid, 0)
    if said:
        code, _, text = os.fsdecode(said).partition(" ")
        raise OSError(int(code), text, mountpoint)


def _wait(server: control.Server, mountpoint: str) -> None:
    why = "another mount namespace holds the mount, or a branch's file system does not answer"
    if not is_stopped(server.pid) and _readable(server.pidfd):
        return
    if is_stopped(server.pid):
        why = f"it is stopped; 'kill -CONT {server.pid}' lets it end"
    raise OSError(errno.ETIMEDOUT, f"unmounted, but its server {server.pid} has not ended: {why}", mountpoint)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(DEADLINE_SECONDS * 1000))
