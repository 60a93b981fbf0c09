"""The last step of getting an image from elsewhere: it is unpacked at once, and an image that cannot be is not kept."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from drivers.api import Snapshotter
from runtime.errors import ImageError, ImageInUse, NoSuchImage
from runtime.images.unpack import unpack

if TYPE_CHECKING:
    from runtime.images.image import Image
    from runtime.images.store import ImageStore


def admit(store: ImageStore, image: Image, driver: Snapshotter) -> str:
    """Unpack what was just published into `driver`, verifying the diff ids; the name of the snapshot with its tree.

    An image that is refused (its layers are hostile, or not those that it says) is removed again, with all its names;
    a full disk or a kernel's refusal says nothing about the image, and it stays. Raises as unpack() does.
    """
    try:
        return unpack(store, image, driver) if image.layers else ""
    except ImageError as error:
        if error.__cause__ is not None and isinstance(error.__cause__.__cause__, OSError):
            raise
        with contextlib.suppress(NoSuchImage, ImageInUse):
            for name in image.references or (image.id,):
                store.remove(name)
        raise
