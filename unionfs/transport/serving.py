"""What both sessions do around their own work: the process made fit to serve, and its mount taken away at the end."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import queue
import resource
import signal
import threading
from typing import NoReturn

from unionfs.linux import consts
from unionfs.linux.mounts import MountPoint, MountTable
from unionfs.linux.processes import lose
from unionfs.transport import device

# How long the end waits for threads that are still at work: when nobody uses the mount any more, less than `unionfs
# umount` waits for us; and when it was told twice to end.
ENDED_SECONDS = 25.0
HURRIED_SECONDS = 5.0

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


def start(thread: threading.Thread) -> None:
    """Raises OSError: EAGAIN, there is no thread to be had."""
    try:
        thread.start()
    except RuntimeError:
        text = "no thread can be started: see 'ulimit -u', and pids.max of its cgroup"
        raise OSError(errno.EAGAIN, text) from None


def leave(identity: str, unmounter: Unmounter) -> NoReturn:
    """End the process although threads of it wait for a branch's file system, with the union's lock perhaps: nothing is
    left to be closed in order. What they were at is as after a crash (union/__init__.py, "Order on disk")."""
    _log.error("a branch's file system does not answer; ending without the requests that wait for it")
    unmounter.detach(identity)
    logging.shutdown()
    os._exit(1)


class Unmounter:
    """Takes the session's mount away, with what it got before the mount: a thread, and the table of mounts. Later
    neither may be had. Mounts are named by their identity (transport/device.py)."""

    def __init__(self) -> None:
        """Raises OSError: EAGAIN, no thread to be had."""
        self._table = MountTable()
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        try:
            self._thread = threading.Thread(target=self._work, name="unmount", daemon=True)
            start(self._thread)
        except BaseException:
            self._table.close()
            raise

    def unmount(self, identity: str) -> None:
        """Begin to take the mount away wherever it is; where it is in use, to detach it: no new user finds it, those it
        has are served until they are done. In a thread: that waits for pages to be written, by us."""
        self._orders.put(identity)

    def detach(self, identity: str) -> None:
        """After the session: a mount that nobody serves must not stay. Usually there is none left."""
        for point in self.places(identity):
            with contextlib.suppress(OSError):  # unmounted by somebody else meanwhile
                device.detach(point.target, lazy=True)

    def places(self, identity: str) -> list[MountPoint]:
        """Where the mount can be unmounted, as far as we see: it may have been moved or bound, or lie under another."""
        points = self._table.read()
        top = {point.target: point.mount_id for point in points}
        return [p for p in reversed(points) if top[p.target] == p.mount_id and device.identity_of(p) == identity]

    def close(self) -> None:
        self._orders.put("")
        self._thread.join(HURRIED_SECONDS)
        if not self._thread.is_alive():
            self._table.close()

    def _work(self) -> None:
        while identity := self._orders.get():
            found = self.places(identity)
            if not found:
                _log.warning("covered by another mount, or in another namespace: served until it is unmounted there")
            for point in found:
                _unmount(point.target)


def _unmount(target: str) -> None:
    try:
        device.detach(target)
        return
    except OSError as error:
        why = error.strerror
    try:
        device.detach(target, lazy=True)
    except OSError as error:
        _log.error("%s: cannot be unmounted (%s): served on", target, error.strerror)
    else:
        _log.warning("%s: %s: detached; served until its last user is done", target, why)
