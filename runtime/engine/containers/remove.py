"""Removing a container, killed first where that is wanted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.engine.containers import release
from runtime.engine.containers.container import Container
from runtime.engine.containers.stop import stop
from runtime.engine.installation import Installation
from runtime.engine.watch import connect
from runtime.errors import NoSuchContainer, StateError

if TYPE_CHECKING:
    from runtime.engine.storage.drivers import Away

# How long another process may take that makes, removes or recovers the container, seconds.
_OTHERS_WORK = 10.0


def remove(installation: Installation, container: Container, *, force: bool, tell: Callable[[Away], object]) -> None:
    """Remove a container with its snapshot; with `force` a running one is killed first.

    One whose record is damaged does not tell its driver: its snapshot is looked for in all, and `tell` hears of each
    that does not work now, and may have it.
    """
    name = container.config.name
    if force:
        stop(installation, container, number=signal.SIGKILL, patience=0.0)
    elif watch := connect(container):
        watch.close()
        raise StateError(f"the container {name} is running: stop it first, or remove it with -f")
    try:
        lock = container.lock(_OTHERS_WORK)
    except NoSuchContainer:
        if force:
            return  # it was run with --rm, or another process was faster
        raise
    if lock is None:
        raise StateError(f"the container {name} is in the hands of another process")
    try:
        if container.damage:
            for driver in release.discard_damaged(installation, container):
                tell(driver)
        else:
            release.processes(container)  # there is one only where recovery could not end it, and this says why
            release.discard(installation, container)
    finally:
        os.close(lock)
