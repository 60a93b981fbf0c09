"""Ending a running container: asked first, then killed."""

from __future__ import annotations

import os
import signal

from runtime.engine.containers import release
from runtime.engine.containers.container import Container
from runtime.engine.containers.recovery import recover
from runtime.engine.installation import Installation
from runtime.engine.processes import Process
from runtime.engine.state import Status
from runtime.engine.watch import connect
from runtime.errors import ContainerEnded, ContainerError, StateError

_ANSWER = 5.0  # seconds for a killed container to be taken down, before we kill its first process ourselves

# After SIGKILL a container ends as soon as the kernel lets its processes go; whoever waits longer waits for a disk.
_AFTER_KILL = 30.0
_GIVING_BACK = 30.0  # and for its task to take the rest down then


def stop(installation: Installation, container: Container, *, number: int, patience: float | None) -> None:
    """Send `number`, and SIGKILL after `patience` seconds (None: never). Back when everything is given back.

    A container that is not running is left as it is. Raises StateError when even SIGKILL does not end it, or its task
    does not answer: its processes are killed then all the same.
    """
    watch = connect(container)
    if watch is None:
        _end_lost(installation, container)
        return
    installation.close()  # what a driver holds, others would wait for as long as we do
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
    # A task that was killed in the meantime ends the line as well, and leaves the work to us.
    recover(installation)


def _end_lost(installation: Installation, container: Container) -> None:
    """End one that runs on without its task, as recovery could not: this raises why."""
    if container.state().status is Status.RUNNING and (lock := container.lock()) is not None:
        try:
            release.processes(container)
        finally:
            os.close(lock)
        recover(installation)


def _kill(container: Container) -> bool:
    """Kill the first process ourselves, and the others with it; whether it has ended. Its task may be stopped."""
    from runtime.oci import container as oci

    pid = container.state().pid
    if not pid:
        return True
    try:
        with Process(pid) as init:
            try:
                oci.kill(container.run_directory, signal.SIGKILL)  # which looks whether it is the container's
            except ContainerError:
                if not init.ended(0):  # else its task has deleted it meanwhile, record and all
                    raise
            return init.ended(_AFTER_KILL)
    except (ProcessLookupError, ContainerEnded):
        return True
