"""What a killed process left behind, taken back by whichever command comes next.

A container that is in a status which some process must be working on, while nobody holds its lock, was left by one that
died. Taking its lock makes this process the one at work.
"""

from __future__ import annotations

import os
import signal
import time

from runtime.engine import release
from runtime.engine.containers import Container, ContainerStore
from runtime.engine.paths import Paths
from runtime.engine.processes import holding
from runtime.engine.state import State, Status
from runtime.errors import NoSuchContainer

# How long a FUSE server may take to unmount and end after SIGTERM before it is killed, seconds.
_PATIENCE = 5.0


def recovered(paths: Paths) -> ContainerStore:
    """The containers, none of which is left behind by a killed process."""
    store = ContainerStore(paths)
    recover(store)
    return store


def recover(store: ContainerStore) -> None:
    """Bring every container that was left behind to rest."""
    store.sweep()
    for container in store.unsettled():
        try:
            lock = container.lock()
        except NoSuchContainer:
            continue  # removed between our look and now
        if lock is None:
            continue
        try:
            _settle(store, container)
        finally:
            os.close(lock)


def _settle(store: ContainerStore, container: Container) -> None:
    found = container.state()
    if found.status in (Status.CREATING, Status.REMOVING):
        release.discard(store, container, after_crash=True)
        return
    trouble = release.attempt(
        [release.processes, release.endpoint, _namespace, release.mounts], container
    )
    if found.status is Status.CREATED or container.config.remove:
        release.discard(store, container)
    else:
        container.rest(_final(found, trouble))


def _final(found: State, trouble: str) -> State:
    """How a container ended whose shim did not live to say so."""
    if found.finished:
        return found.to(Status.EXITED, pid=0, shim_pid=0)
    error = "; ".join(filter(None, ["its shim was killed", trouble]))
    return found.to(Status.EXITED, pid=0, shim_pid=0, finished=time.time(), exit_code=137, error=error)


def _namespace(container: Container) -> None:
    """End what keeps the shim's mount namespace, and with it the root file system: a driver's FUSE server."""
    for process in holding(container.rootfs):
        with process:
            process.send(signal.SIGTERM)
            if not process.ended(_PATIENCE):
                process.send(signal.SIGKILL)
                process.ended(_PATIENCE)
