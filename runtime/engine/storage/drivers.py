"""The storage drivers of an installation: the one that was chosen, with its options (`--storage-driver NAME
--storage-opt NAME=VALUE`), and those that have been used."""

from __future__ import annotations

import os
from _thread import allocate_lock  # of threading, which costs a millisecond more
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from runtime.engine.paths import Paths

if TYPE_CHECKING:
    from drivers.api import Snapshotter


class Storage(NamedTuple):
    """A driver's name, and the options that were given for it now; others are kept with its root (drivers.catalog)."""

    driver: str
    options: Mapping[str, str]


class Away(NamedTuple):
    """A driver that this installation has used and that does not work here now: its pool is exported, its module gone,
    a program or a disk missing. A verb that wants nothing of it only tells of it."""

    driver: str
    reason: str
    holds: frozenset[str] = frozenset()  # layers of images that are gone, as far as it can be asked

    def __str__(self) -> str:
        return f"storage driver {self.driver} does not work now, and what it has is left as it is: {self.reason}"


class Drivers:
    """Each driver is opened when it is first wanted, and once; it is the same object for all who ask, and theirs to
    use and not to close. One that does not open is tried again by whoever asks next: its disk may be back. Threads may
    share it; one opens a driver at a time, and the others wait for that."""

    def __init__(self, paths: Paths, storage: Storage) -> None:
        self.storage = storage
        self._paths = paths
        self._guard = allocate_lock()
        self._opened: dict[str, Snapshotter] = {}  # guarded by _guard
        self._chosen: Snapshotter | None = None  # guarded by _guard
        self._former: list[Snapshotter] = []  # guarded by _guard

    def get(self, name: str) -> Snapshotter:
        """The driver `name` on its directory, with the options that are kept there. DriverError."""
        with self._guard:
            if name not in self._opened:
                self._opened[name] = self._open_locked(name, {})
            return self._opened[name]

    def chosen(self) -> Snapshotter:
        """The driver that new containers are made on, with the options that were given now. DriverError."""
        name, options = self.storage
        if not options:
            return self.get(name)
        with self._guard:
            if self._chosen is None:
                self._chosen = self._open_locked(name, options)
                if name in self._opened:  # by somebody who has it still, and without the options
                    self._former.append(self._opened[name])
                self._opened[name] = self._chosen
            return self._chosen

    def _open_locked(self, name: str, options: Mapping[str, str]) -> Snapshotter:
        from drivers.catalog import open_driver  # late: not every command needs one

        return open_driver(name, self._paths.driver(name), options)

    def used(
        self, names: Collection[str] | None = None, *, away: list[Away] | None = None
    ) -> Iterator[tuple[str, Snapshotter]]:
        """Every driver that this installation has used, of those with `names`, by name; those that do not work here
        now are left out, and put into `away`."""
        from drivers.catalog import NAMES
        from drivers.errors import DriverError

        for name in NAMES:
            if (names is not None and name not in names) or not os.path.isdir(self._paths.driver(name)):
                continue
            try:
                driver = self.get(name)
            except DriverError as error:
                if away is not None:
                    away.append(Away(name, str(error)))
                continue
            yield name, driver

    def remove(self, key: str) -> list[Away]:
        """Remove the snapshot `key` from every driver that works here and has it; the drivers that do not work here,
        which may have it as well. Raises DriverError, OSError."""
        from drivers.errors import NotFound

        away: list[Away] = []
        for _, driver in self.used(away=away):
            with suppress(NotFound):
                driver.stat(key)  # by the store alone: what the driver stands on may be away
                driver.remove(key)
        return away

    def written(self, name: str, key: str) -> int:
        """The bytes of a snapshot of the driver `name`; 0 as well for what is damaged, or away."""
        from drivers.errors import DriverError

        with suppress(DriverError, OSError):
            return self.get(name).usage(key).size
        return 0

    def close(self) -> None:
        """Close those that are open. Others may be opened afterwards; twice is fine."""
        with self._guard:
            left = [*self._former, *self._opened.values()]
            self._former, self._opened, self._chosen = [], {}, None
        with ExitStack() as closing:  # one that fails does not keep the others open
            for driver in left:
                closing.callback(driver.close)
