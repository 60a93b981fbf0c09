"""What our processes left when they were killed, taken back in one place: docs/leftovers.md lists it.

Every verb that makes room comes here at its end: rm, rmi and the prune verbs. Whoever unpacks an image comes to
images.unpack.take_back(), the part of it that is about one driver. Two things are not here: containers, which the next
command of any kind brings to rest (engine/containers/recovery.py), and what broken pulls left, from which the next pull
goes on, and which the prune verbs of images remove.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from drivers.api import Snapshotter
from drivers.errors import DriverError, Unavailable
from runtime.engine.containers import release
from runtime.engine.installation import Installation
from runtime.engine.storage import disk
from runtime.engine.storage.drivers import Away
from runtime.errors import RuntimeFault
from runtime.images import unpack
from runtime.images.store import ImageStore


class TakenBack(NamedTuple):
    """Bytes of layers of images that are gone, what stood in the way of the rest, and drivers that could not be asked
    for theirs."""

    freed: int
    failures: list[Exception]
    away: list[Away]


def take_back(installation: Installation) -> TakenBack:
    """Take back what there is in all drivers that this installation has used, the layers that they have of images that
    are gone, and leases of containers that are gone."""
    images = installation.images
    freed, failures, away = 0, list[Exception](), list[Away]()
    for name, driver in installation.drivers.used(away=away):
        try:
            before = disk.snapshots(driver)
            freed += sum(before.get(gone, 0) for gone in unpack.forget_snapshots(images, driver))
        except Unavailable as error:
            away.append(Away(name, str(error), _unwanted(images, driver)))
        except (RuntimeFault, DriverError, OSError) as error:
            failures.append(error)
    release.leases(installation)
    return TakenBack(freed, failures, away)


def _unwanted(images: ImageStore, driver: Snapshotter) -> frozenset[str]:
    with suppress(RuntimeFault, DriverError, OSError):
        return frozenset(unpack.unwanted(images, driver))
    return frozenset()


def take_back_beside(installation: Installation, drivers: Collection[str]) -> None:
    """The same in these drivers, as far as nobody has to be waited for, and but for layers of images: a pull unpacks an
    image before it is one. After what was asked for, which it must not fail or delay."""
    with suppress(RuntimeFault, DriverError, OSError):
        images = installation.images
        for _, driver in installation.drivers.used(drivers):
            with suppress(RuntimeFault, DriverError, OSError), images.locked(unpack.LOCK, patience=0):
                unpack.take_back(driver)
    release.leases(installation)
