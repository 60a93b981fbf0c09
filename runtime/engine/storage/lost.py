"""Snapshots of containers, looked for in the storage drivers and not in the records.

The record of a container is durable before its snapshot is made, and goes after it. So a snapshot that has a
container's id for its key, and no record of that id beside it, belongs to nobody: its record was lost, with a disk's
errors, a restored backup, or a version that did not make it durable.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import NamedTuple

from drivers.api import Kind
from drivers.errors import DriverError
from runtime.engine.installation import Installation
from runtime.engine.storage.drivers import Away
from runtime.engine.storage.pruned import Pruned

_ID = re.compile(r"[0-9a-f]{64}")


class Snapshot(NamedTuple):
    driver: str
    key: str
    size: int  # bytes that it takes by itself; 0 as well for what is damaged


def ownerless(installation: Installation, away: list[Away]) -> list[Snapshot]:
    """The snapshots of containers that have no record, of the drivers that work here now; the others are put into
    `away`."""
    found = []
    for name, _ in installation.drivers.used(away=away):
        with suppress(DriverError, OSError):
            found += without_record(installation, name)
    return found


def without_record(installation: Installation, name: str) -> list[Snapshot]:
    """Those of one driver. Raises DriverError.

    The record is looked for after the snapshot: one that is being made has it before, one that is being removed has it
    longer.
    """
    driver, place = installation.drivers.get(name), installation.paths.containers
    keys = [info.name for info in driver.walk() if info.kind is Kind.ACTIVE and _ID.fullmatch(info.name)]
    lost = [key for key in keys if not os.path.exists(f"{place}/{key}")]
    return [Snapshot(name, key, installation.drivers.written(name, key)) for key in lost]


def prune(installation: Installation) -> Pruned[Snapshot]:
    """Remove the snapshots of containers that have no record."""
    pruned = Pruned[Snapshot]([], 0, [], [])
    for snapshot in ownerless(installation, pruned.away):
        try:
            installation.drivers.remove(snapshot.key)
            pruned = pruned.and_removed(snapshot, snapshot.size)
        except (DriverError, OSError) as error:
            pruned.failures.append(error)
    return pruned
