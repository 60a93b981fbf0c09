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

from drivers.api import Kind, Snapshotter
from drivers.errors import DriverError, NotFound
from runtime.engine.installation import Installation
from runtime.engine.paths import Paths
from runtime.engine.storage.drivers import Away, Drivers

_ID = re.compile(r"[0-9a-f]{64}")


class Snapshot(NamedTuple):
    driver: str
    key: str
    size: int  # bytes that it takes by itself; 0 as well for what is damaged


def written(driver: Snapshotter, key: str) -> int:
    """The bytes of a snapshot; 0 as well for what is damaged."""
    with suppress(DriverError, OSError):
        return driver.usage(key).size
    return 0


def ownerless(installation: Installation, away: list[Away]) -> list[Snapshot]:
    """The snapshots of containers that have no record, of the drivers that work here now; the others are put into
    `away`."""
    found = []
    for name, driver in installation.drivers.used(away=away):
        with suppress(DriverError, OSError):
            found += without_record(installation.paths, name, driver)
    return found


def without_record(paths: Paths, name: str, driver: Snapshotter) -> list[Snapshot]:
    """Those of one driver, whose name it is. Raises DriverError.

    The record is looked for after the snapshot: one that is being made has it before, one that is being removed has it
    longer.
    """
    keys = [info.name for info in driver.walk() if info.kind is Kind.ACTIVE and _ID.fullmatch(info.name)]
    lost = [key for key in keys if not os.path.exists(f"{paths.containers}/{key}")]
    return [Snapshot(name, key, written(driver, key)) for key in lost]


def remove(drivers: Drivers, key: str) -> list[Away]:
    """Remove the snapshot `key` from every driver that works here and has it; the drivers that do not work here, which
    may have it as well. Raises DriverError, OSError."""
    away: list[Away] = []
    for _, driver in drivers.used(away=away):
        with suppress(NotFound):
            driver.stat(key)  # by the store alone: what the driver stands on may be away
            driver.remove(key)
    return away
