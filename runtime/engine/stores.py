"""The storage drivers of an installation, and snapshots of containers, looked for in them and not in the records.

The record of a container is durable before its snapshot is made, and goes after it. So a snapshot that has a
container's id for its key, and no record of that id beside it, belongs to nobody: its record was lost, with a disk's
errors, a restored backup, or a version that did not make it durable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple

from drivers.api import Kind, Snapshotter
from drivers.catalog import NAMES, open_driver
from drivers.errors import DriverError, NotFound
from runtime.engine.paths import Paths

_ID = re.compile(r"[0-9a-f]{64}")


class Snapshot(NamedTuple):
    driver: str
    key: str
    size: int  # bytes that it takes by itself; 0 as well for what is damaged


class Away(NamedTuple):
    """A driver that this installation has used and that does not work here now: its pool is exported, its module gone,
    a program or a disk missing. That is nothing to a verb that wants nothing of it but to tell it."""

    driver: str
    reason: str
    holds: frozenset[str] = frozenset()  # layers of images that are gone, as far as it can be asked

    def __str__(self) -> str:
        return f"storage driver {self.driver} does not work now, and what it has is left as it is: {self.reason}"


def opened(
    paths: Paths, names: Collection[str] | None = None, *, away: list[Away] | None = None
) -> Iterator[tuple[str, Snapshotter]]:
    """Every driver that this installation has used, of those with `names`, by name, for the time of one turn; those
    that do not work here now are left out, and put into `away`."""
    for name in NAMES:
        if (names is not None and name not in names) or not os.path.isdir(paths.driver(name)):
            continue
        try:
            driver = open_driver(name, paths.driver(name))
        except DriverError as error:
            if away is not None:
                away.append(Away(name, str(error)))
            continue
        try:
            yield name, driver
        finally:
            driver.close()


def written(driver: Snapshotter, key: str) -> int:
    """The bytes of a snapshot; 0 as well for what is damaged."""
    with suppress(DriverError, OSError):
        return driver.usage(key).size
    return 0


def ownerless(paths: Paths, away: list[Away]) -> list[Snapshot]:
    """The snapshots of containers that have no record, of the drivers that work here now; the others are put into
    `away`."""
    found = []
    for name, driver in opened(paths, away=away):
        with suppress(DriverError, OSError):
            found += without_record(paths, name, driver)
    return found


def without_record(paths: Paths, name: str, driver: Snapshotter) -> list[Snapshot]:
    """Those of one driver, whose name it is. Raises DriverError.

    The record is looked for after the snapshot: one that is being made has it before, one that is being removed has it
    longer.
    """
    keys = [info.name for info in driver.walk() if info.kind is Kind.ACTIVE and _ID.fullmatch(info.name)]
    lost = [key for key in keys if not os.path.exists(f"{paths.containers}/{key}")]
    return [Snapshot(name, key, written(driver, key)) for key in lost]


def remove(paths: Paths, key: str) -> list[Away]:
    """Remove the snapshot `key` from every driver that works here and has it; the drivers that do not work here, which
    may have it as well. Raises DriverError, OSError."""
    away: list[Away] = []
    for _, driver in opened(paths, away=away):
        with suppress(NotFound):
            driver.stat(key)  # by the store alone: what the driver stands on may be away
            driver.remove(key)
    return away
