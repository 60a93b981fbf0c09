"""Removing an image from the store, and with its last name what the drivers unpacked of it."""

from __future__ import annotations

import os

from drivers.registry import NAMES, open_driver
from runtime.engine.containers import ContainerStore
from runtime.images.image import Removed
from runtime.images.store import ImageStore
from runtime.images.unpack import forget_snapshots


def remove_image(store: ContainerStore, reference: str) -> Removed:
    """Raises NoSuchImage, ImageInUse."""
    images = ImageStore(store.paths.images)
    removed = images.remove(reference, in_use={container.config.image_id for container in store})
    if removed.deleted:
        for name in NAMES:
            if os.path.isdir(store.paths.driver(name)):
                driver = open_driver(name, store.paths.driver(name))
                try:
                    forget_snapshots(images, driver)
                finally:
                    driver.close()
    return removed
