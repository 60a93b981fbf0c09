"""`start` of a container that is at rest, as one that was created or has ended; and what every start ends with."""

from __future__ import annotations

import os
from collections.abc import Sequence

from drivers.api import Mount
from runtime.engine import waiting
from runtime.engine.containers.container import Container
from runtime.engine.containers.recovery import recover
from runtime.engine.installation import Installation
from runtime.engine.spawn import Task
from runtime.engine.state import AT_REST
from runtime.errors import StateError, TaskLost


def start(
    installation: Installation, container: Container, window: tuple[int, int] = (0, 0), *,
    answered: waiting.Answered = waiting.answered,
) -> Task:  # fmt: skip
    """Start a container that is at rest; its task, which has `started` it. Raises RuntimeFault, DriverError or OSError;
    the container is at rest then as it was, or is gone if it removes itself."""
    name, lock = container.config.name, container.lock()
    if lock is None:
        raise StateError(f"the container {name} is running, or in the hands of another process")
    try:
        found = container.state()
        if found.status not in AT_REST:
            raise StateError(f"the container {name} is {found.status.value}: it cannot be started")
        mounts = installation.drivers.get(container.config.driver).mounts(container.id)
        task = Task(answered=answered)
    except BaseException:
        os.close(lock)
        raise
    installation.close()  # the task has its own, and we may wait for long
    hand_over(installation, task, container, lock, mounts, window)
    return task


def hand_over(
    installation: Installation, task: Task, container: Container, lock: int, mounts: Sequence[Mount],
    window: tuple[int, int],
) -> None:  # fmt: skip
    """Have `task` start the container, whose lock is its own from here on. Raises what it met; it has ended then, and
    the container is at rest."""
    try:
        task.order(container, lock, mounts, window)
        task.started()
    except TaskLost:  # at once: signals may come of it that end us
        task.wait()
        recover(installation)
        raise
    except BaseException:
        task.wait()
        raise
