"""The storage driver that was chosen, with its options: `--storage-driver NAME --storage-opt NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from runtime.engine.options import size
from runtime.engine.paths import Paths
from runtime.errors import UsageError

if TYPE_CHECKING:
    from drivers.api import Snapshotter

MINIMUM_QUOTA = 1 << 20


class Storage(NamedTuple):
    """A driver's name, and the options that were given for it now; others are kept with its root (drivers.catalog)."""

    driver: str
    options: Mapping[str, str]

    def open(self, paths: Paths) -> Snapshotter:
        """The driver on its directory of this installation, to be closed by the caller. DriverError."""
        from drivers.catalog import open_driver

        return open_driver(self.driver, paths.driver(self.driver), self.options)


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary; the last of a name counts. UsageError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"invalid storage option {text!r}: write NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def quota(texts: Iterable[str]) -> int:
    """The bytes of `run --storage-opt size=`, 0 for none. UsageError for any other option."""
    given = pairs(texts)
    for name in given:
        if name != "size":
            raise UsageError(
                f"a container has the storage option size and not {name!r}; those of a driver come before the verb"
            )
    limit = size(given.get("size", "0"))
    if "size" in given and limit < MINIMUM_QUOTA:
        raise UsageError(f"the smallest size of a container is 1m, not {given['size']}")
    return limit
