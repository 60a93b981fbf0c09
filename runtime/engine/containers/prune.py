"""Removing the containers that are at rest: that have ended, or never ran."""

from __future__ import annotations

from drivers.errors import DriverError
from runtime.engine.containers.remove import remove
from runtime.engine.installation import Installation
from runtime.engine.state import AT_REST
from runtime.engine.storage.pruned import Pruned
from runtime.errors import NoSuchContainer, RuntimeFault, StateError


def prune(installation: Installation) -> Pruned[str]:
    """Remove them; their ids. One that somebody else is at work on stays, and so does one that is damaged."""
    pruned = Pruned[str]([], 0, [], [])
    for container in installation.containers:
        try:
            if container.state().status not in AT_REST:
                continue
            size = installation.drivers.written(container.config.driver, container.id)
            remove(installation, container, force=False, tell=pruned.away.append)
            pruned = pruned.and_removed(container.id, size)
        except (NoSuchContainer, StateError):
            continue
        except (DriverError, OSError, RuntimeFault) as error:
            pruned.failures.append(error)
    return pruned
