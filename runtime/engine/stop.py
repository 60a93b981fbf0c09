"""Ending a running container: asked first, then killed; and removing one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.engine import release
from runtime.engine.containers import Container, ContainerStore
from runtime.engine.processes import Process
from runtime.engine.recover import recover
from runtime.engine.watch import connect
from runtime.errors import ContainerError, NoSuchContainer, StateError

if TYPE_CHECKING:
    from runtime.engine.stores import Away

_ANSWER = 5.0  # seconds for a killed container to be given back, until its first process is killed past its shim

# After SIGKILL a container ends as soon as the kernel lets its processes go; who waits longer waits for a disk.
_AFTER_KILL = 30.0
_GIVING_BACK = 30.0  # and so long its shim may take then

# How long another process may take that makes, removes or recovers the container.
_OTHERS_WORK = 10.0


def stop(store: ContainerStore, container: Container, *, number: int, patience: float | None) -> None:
    """Send `number`, and SIGKILL after `patience` seconds (None: never). Back when everything is given back.

    A container that is not running is left as it is. Raises StateError when even SIGKILL does not end it, or its shim
    does not answer: its processes are killed then all the same.
    """
    watch = connect(container)
    if watch is None:
        return
    with watch:
        watch.signal(number)
        if not watch.ended(patience):
            watch.signal(signal.SIGKILL)
            if not watch.ended(_ANSWER):
                name = container.config.name
                if not _kill(container):
                    raise StateError(f"the container {name} does not end: a process of it waits in the kernel")
                if not watch.ended(_GIVING_BACK):
                    raise StateError(f"the process that keeps {name} does not answer")
    # A shim that was killed in the meantime ends the line as well, and leaves the work to us.
    recover(store)


def _kill(container: Container) -> bool:
    """Kill the first process ourselves, and the others with it; whether it has ended. Its shim may be stopped."""
    from runtime.oci import container as oci

    pid = container.state().pid
    if not pid:
        return True
    try:
        with Process(pid) as init:
            oci.kill(container.run_directory, signal.SIGKILL)  # which looks whether it is the container's
            return init.ended(_AFTER_KILL)
    except (ProcessLookupError, ContainerError):
        return True


def remove(
    store: ContainerStore, container: Container, *, force: bool, tell: Callable[[Away], object]
) -> None:
    """Remove a container with its snapshot; with `force` a running one is killed first.

    One whose record is damaged does not tell its driver: its snapshot is looked for in all, and `tell` hears of each
    that does not work now, and may have it.
    """
    name = container.config.name
    if force:
        stop(store, container, number=signal.SIGKILL, patience=0.0)
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
            for driver in release.discard_damaged(store, container):
                tell(driver)
        else:
            release.discard(store, container)
    finally:
        os.close(lock)
