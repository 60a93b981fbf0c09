"""Removing an image from the store, and with its last name what the drivers unpacked of it."""

from __future__ import annotations

from runtime.engine import disk, stores
from runtime.engine.containers import ContainerStore
from runtime.engine.paths import Paths
from runtime.images.image import Removed
from runtime.images.store import ImageStore
from runtime.images.unpack import forget_snapshots


def remove_image(store: ContainerStore, reference: str) -> Removed:
    """Raises NoSuchImage, ImageInUse."""
    images = ImageStore(store.paths.images)
    removed = images.remove(reference, in_use=lambda: in_use(store))
    if removed.deleted:
        forget(store.paths, images)
    return removed


def in_use(store: ContainerStore) -> set[str]:
    """The ids of images that containers are made of."""
    return {container.config.image_id for container in store}


def forget(paths: Paths, images: ImageStore) -> int:
    """Let every driver that works here remove what it unpacked of images that are gone; the bytes that it freed."""
    freed = 0
    for _, driver in stores.opened(paths):
        before = disk.snapshots(driver)
        freed += sum(before.get(name, 0) for name in forget_snapshots(images, driver))
    return freed
