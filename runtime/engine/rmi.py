"""Removing an image from the store, and with its last name what the drivers unpacked of it."""

from __future__ import annotations

from runtime.engine import leftovers
from runtime.engine.containers import ContainerStore
from runtime.errors import RuntimeFault, sentence
from runtime.images.image import Removed
from runtime.images.store import ImageStore


def remove_image(store: ContainerStore, reference: str) -> Removed:
    """Raises NoSuchImage, ImageInUse; RuntimeFault when the image is gone, and not all that was unpacked of it."""
    images = ImageStore(store.paths.images)
    removed = images.remove(reference, in_use=lambda: in_use(store))
    if removed.deleted:
        _, failures = leftovers.take_back(store)
        if failures:
            raise RuntimeFault(
                f"{reference} is removed, but not all that was unpacked of it: {sentence(failures[0])}; "
                "`runtime image prune` tries again"
            ) from failures[0]
    return removed


def in_use(store: ContainerStore) -> set[str]:
    """The ids of images that containers are made of."""
    return {container.config.image_id for container in store}
