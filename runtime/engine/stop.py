"""Ending a running container: asked first, then killed; and removing one."""

from __future__ import annotations

import os
import signal

from runtime.engine import release
from runtime.engine.containers import Container, ContainerStore
from runtime.engine.recover import recover
from runtime.engine.watch import connect
from runtime.errors import NoSuchContainer, StateError

# After SIGKILL a container ends as soon as the kernel lets its processes go; who waits longer waits for a disk.
_AFTER_KILL = 30.0

# How long another process may take that makes, removes or recovers the container.
_OTHERS_WORK = 10.0


def stop(store: ContainerStore, container: Container, *, number: int, patience: float | None) -> None:
    """Send `number`, and SIGKILL after `patience` seconds (None: never). Back when everything is given back.

    A container that is not running is left as it is. Raises StateError when even SIGKILL does not end it.
    """
    watch = connect(container)
    if watch is None:
        return
    with watch:
        watch.signal(number)
        if not watch.ended(patience):
            watch.signal(signal.SIGKILL)
            if not watch.ended(_AFTER_KILL):
                name = container.config.name
                raise StateError(f"the container {name} does not end: a process of it waits in the kernel")
    # A shim that was killed in the meantime ends the line as well, and leaves the work to us.
    recover(store)


def remove(store: ContainerStore, container: Container, *, force: bool) -> None:
    """Remove a container with its snapshot; with `force` a running one is killed first.

    One whose record is damaged does not tell its driver: its snapshot is looked for in all.
    """
    name = container.config.name
    if force:
        stop(store, container, number=signal.SIGKILL, patience=_AFTER_KILL)
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
            release.discard_damaged(store, container)
        else:
            release.discard(store, container)
    finally:
        os.close(lock)
