"""Removing an image from the store, and with its last name what the drivers unpacked of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from drivers.errors import DriverError
from runtime.engine.containers import names
from runtime.engine.installation import Installation
from runtime.engine.storage import leftovers
from runtime.engine.storage.drivers import Away
from runtime.errors import ImageError, ImageInUse, NoSuchImage, RuntimeFault, sentence
from runtime.images.image import Removed
from runtime.images.unpack import chain_ids


def remove_image(installation: Installation, reference: str, *, tell: Callable[[Away], object]) -> Removed:
    """`tell` hears of each driver that does not work now, and has nothing of the image as far as it can be asked.

    Raises NoSuchImage, ImageInUse; RuntimeFault when the image is gone, and not all that was unpacked of it.
    """
    images = installation.images
    chains: list[str] = []
    with suppress(ImageError, NoSuchImage):  # damaged: it can be removed all the same
        chains = chain_ids(images.get(reference).layers)
    removed = images.remove(reference, in_use=lambda: in_use(installation))
    if removed.deleted:
        _, failures, away = leftovers.take_back(installation)
        said = [sentence(failure) for failure in failures]
        for driver in away:
            if driver.holds.isdisjoint(chains):
                tell(driver)
            else:
                said.append(driver.reason)
        if said:
            raise RuntimeFault(
                f"{reference} is removed, but not all that was unpacked of it: {said[0]}; "
                "`runtime image prune` tries again"
            )
    return removed


def in_use(installation: Installation) -> set[str]:
    """The ids of images that containers are made of.

    For a container whose record is damaged, what its snapshot is on says it. ImageInUse where even that cannot be told.
    """
    used = {container.config.image_id for container in installation.containers}
    damaged = {container.id for container in installation.containers.damaged()}
    if not damaged:
        return used
    parents = {}
    for _, driver in installation.drivers.used():
        for key in damaged:
            with suppress(DriverError, OSError):
                parents[key] = driver.stat(key).parent
    if unknown := damaged - parents.keys():
        raise ImageInUse(
            f"container {min(unknown)[: names.SHORT_ID]} is damaged, and which image it is made of cannot be told: "
            "restore its record, or remove it (runtime rm -f)"
        )
    tops = {chain_ids(image.layers)[-1]: image.id for image in installation.images.list() if image.layers}
    return used | {tops[parent] for parent in parents.values() if parent in tops}
