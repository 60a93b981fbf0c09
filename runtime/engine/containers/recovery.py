"""What a killed process or a power cut left behind, taken back by whichever command comes next.

A container whose status says that a process is at work on it, or which has a run directory, while nobody holds its
lock, was left by one that died. Taking its lock makes this process the one at work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import partial

from drivers.errors import DriverError
from runtime.engine.containers import release
from runtime.engine.containers.container import Container
from runtime.engine.installation import Installation
from runtime.engine.state import AT_REST, State, Status, rested
from runtime.errors import NoSuchContainer, RuntimeFault, StateError, step

# The exit codes of containers whose end nobody saw: as killed, and docker's for "the machine went down".
_KILLED = 137
_WENT_DOWN = 255


def recover(installation: Installation) -> None:
    """Bring every container that was left behind to rest.

    One that cannot be (a process that does not end, a full disk, a snapshot that someone uses) is left as it is: a verb
    that is about it says why.
    What is removed here was never to stay (it was still being made, or runs with --rm), or was being removed by a
    process that was killed; not what somebody failed to remove, who said so (release.discard), nor what is damaged.
    """
    paths = installation.paths
    with step(f"use the directories {paths.root} and {paths.state}"):
        containers = installation.containers
        containers.sweep()
        if _settle_all(installation, containers.unsettled()):
            release.leases(installation)


def _settle_all(installation: Installation, unsettled: Iterable[Container]) -> bool:
    """Whether there was anything to do."""
    lost = False
    for container in unsettled:
        try:
            lock = container.lock()
        except NoSuchContainer:
            continue  # removed between our look and now
        if lock is None:
            continue
        try:
            lost |= _settle(installation, container)
        except (RuntimeFault, DriverError, OSError):
            continue
        finally:
            os.close(lock)
    return lost


def _settle(installation: Installation, container: Container) -> bool:
    """Whether there was anything to do."""
    found = container.state()
    up = os.path.exists(container.run_directory)
    if found.status in AT_REST and not up:
        return False  # its task has ended between our look and now
    killed = found.oom_killed or release.oom_killed(container)
    if trouble := release.attempt([release.processes], container):
        raise StateError(trouble)  # what still runs does not rest, and keeps what it has
    trouble = release.attempt([partial(release.endpoint, installation)], container)
    if found.status is Status.DEAD:
        container.tidy()
    elif _stays(container, found):
        container.rest(_final(found, up, trouble)._replace(oom_killed=killed))
    else:
        release.discard(installation, container, after_crash=True)
    return True


def _stays(container: Container, found: State) -> bool:
    """Whether somebody counts on it: it was put at rest, or has run, or why it could not be started has been told."""
    if container.config.remove:
        return False
    if found.status is Status.CREATED:
        return bool(found.error) or rested(container.directory) is not None
    return found.status in (Status.RUNNING, Status.EXITED)


def _final(found: State, up: bool, trouble: str) -> State:
    """The state in which a container rests whose task died before recording it; `up`: its run directory is there."""
    if found.status in AT_REST:
        return found
    code, cause = (_KILLED, "its task was killed") if up else (_WENT_DOWN, "the machine went down")
    error = "; ".join(filter(None, [cause, trouble]))
    return found.to(Status.EXITED, pid=0, task_pid=0, finished=time.time(), exit_code=code, error=error)
