"""A container's file system for those who look at it from outside: the driver that has it, and what is not its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runtime.engine.containers import Container
from runtime.engine.paths import Paths

if TYPE_CHECKING:
    from drivers.api import Snapshotter


@contextmanager
def driver_of(container: Container) -> Iterator[Snapshotter]:
    """The driver in which the container's id is the key of its file system. Raises DriverError."""
    from drivers.registry import open_driver

    config = container.config
    driver = open_driver(config.driver, Paths(config.root, config.state).driver(config.driver))
    try:
        yield driver
    finally:
        driver.close()


def mount_points(container: Container) -> list[bytes]:
    """Where something is mounted in the container. What had to be made there for it is nothing that the container has
    changed; docker keeps it in a layer below the container's."""
    return [os.fsencode(os.path.normpath(mount["destination"]).strip("/")) for mount in container.config.spec["mounts"]]
