"""`start` of a container that is at rest: one that was created, or has ended."""

from __future__ import annotations

import os

from runtime.engine import waiting
from runtime.engine.containers.container import Container
from runtime.engine.containers.recovery import recover
from runtime.engine.installation import Installation
from runtime.engine.shim import Shim
from runtime.engine.state import AT_REST
from runtime.errors import ShimLost, StateError


def start(
    installation: Installation, container: Container, window: tuple[int, int] = (0, 0), *,
    answered: waiting.Answered = waiting.answered,
) -> Shim:  # fmt: skip
    """Start a container that is at rest; its shim, which has `started` it. Raises RuntimeFault, DriverError or OSError;
    the container is at rest then as it was, or is gone if it removes itself."""
    name, lock = container.config.name, container.lock()
    if lock is None:
        raise StateError(f"the container {name} is running, or in the hands of another process")
    try:
        found = container.state()
        if found.status not in AT_REST:
            raise StateError(f"the container {name} is {found.status.value}: it cannot be started")
        mounts = installation.drivers.get(container.config.driver).mounts(container.id)
        shim = Shim(answered=answered)
    except BaseException:
        os.close(lock)
        raise
    try:
        installation.close()  # the shim has its own, and we may wait for long
        shim.order(container, lock, mounts, window)
        shim.started()
    except ShimLost:
        shim.wait()
        recover(installation)
        raise
    except BaseException:
        shim.wait()
        raise
    return shim
