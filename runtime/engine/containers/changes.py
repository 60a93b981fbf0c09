"""What a container has changed, and all that it has: `diff` and `export`. A running one is read through its own mount
(trees.py)."""

from __future__ import annotations

from collections.abc import Callable

from drivers import diff
from drivers.diff import snapshots
from runtime.engine.containers import trees
from runtime.engine.containers.container import Container
from runtime.engine.installation import Installation


def changes(installation: Installation, container: Container) -> list[diff.Change]:
    """What was added, changed and deleted, in the order of the paths. Raises RuntimeFault, DriverError, OSError."""
    driver = installation.drivers.get(container.config.driver)
    with trees.live(container) as live:
        return diff.changes(driver, container.id, mount_points=trees.mount_points(container), live=live)


def export(installation: Installation, container: Container, write: Callable[[bytes], object]) -> None:
    """Give `write` the file system as an archive, piece by piece. Raises RuntimeFault, DriverError, OSError."""
    driver = installation.drivers.get(container.config.driver)
    with trees.live(container) as live, snapshots.tree(driver, container.id, live) as root_fd:
        diff.write_tree(root_fd, write)
