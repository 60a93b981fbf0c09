"""What both sessions do around their own work: the process made fit to serve, and its mount taken away at the end."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal

from unionfs.linux import consts
from unionfs.linux.mounts import MountPoint, mountinfo
from unionfs.linux.processes import lose
from unionfs.transport import device

_log = logging.getLogger(__name__)


def prepare_process() -> None:
    os.umask(0)  # modes are what the caller asked for
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The limits of a disk quota are for our callers, and no one who has this has any (ignore_hardlimit(),
    # fs/quota/dquot.c).
    lose(consts.CAP_SYS_RESOURCE)
    # Requests make no reference cycles, and a full collection over some hundred thousand nodes stops everybody for
    # 150 ms: only what is young is searched.
    gc.freeze()
    gc.set_threshold(20_000, 1_000_000, 1_000_000)


def unmount(dev: str) -> None:
    """Take the mount with this device number away wherever it is; where it is in use, detach it: no new user finds it,
    those it has are served until they are done."""
    found = places(dev)
    if not found:
        _log.warning("covered by another mount or held by another namespace: served until it is unmounted there")
    for point in found:
        try:
            device.detach(point.target)
        except OSError as error:
            _log.warning("%s: %s: detached; served until its last user is done", point.target, error.strerror)
            with contextlib.suppress(OSError):
                device.detach(point.target, lazy=True)


def detach(dev: str) -> None:
    """After the session: a mount that nobody serves must not stay. Usually there is none left."""
    for point in places(dev):
        with contextlib.suppress(OSError):  # unmounted by somebody else meanwhile
            device.detach(point.target, lazy=True)


def places(dev: str) -> list[MountPoint]:
    """Where we can unmount our mount: it may have been moved or bound, or lie under another."""
    points = mountinfo()
    top = {point.target: point.mount_id for point in points}
    return [p for p in reversed(points) if p.device == dev and top[p.target] == p.mount_id]
