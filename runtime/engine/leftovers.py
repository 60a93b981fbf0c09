"""What processes of ours left that were killed, taken back in one place: docs/leftovers.md lists it.

Every verb that makes room comes here at its end: rm, rmi and the prune verbs. Who unpacks an image comes to
images.unpack.take_back(), the part of it that is about one driver. Two things are not here: containers, which the next
command of any kind brings to rest (engine.recover), and what broken pulls left, from which the next pull goes on, and
which the prune verbs of images remove.
"""

from __future__ import annotations

from collections.abc import Collection

from drivers.errors import DriverError, TimedOut
from runtime.engine import disk, recover, stores
from runtime.engine.containers import ContainerStore
from runtime.errors import RuntimeFault
from runtime.images.store import ImageStore
from runtime.images.unpack import PATIENCE, forget_snapshots


def take_back(
    store: ContainerStore, *, drivers: Collection[str] | None = None, patience: float = PATIENCE
) -> tuple[int, list[Exception]]:
    """Take back what there is in `drivers` (None: in all that this installation has used), the layers that they have of
    images that are gone, and leases of containers that are gone.

    The bytes of those layers, and what stood in the way of the rest. Where somebody unpacks an image he is waited for,
    `patience` seconds, and what is left then is for the next.
    """
    images = ImageStore(store.paths.images)
    freed, failures = 0, list[Exception]()
    for _, driver in stores.opened(store.paths, drivers):
        try:
            before = disk.snapshots(driver)
            freed += sum(before.get(gone, 0) for gone in forget_snapshots(images, driver, patience=patience))
        except TimedOut:
            continue
        except (RuntimeFault, DriverError, OSError) as error:
            failures.append(error)
    recover.leases(store)
    return freed, failures
