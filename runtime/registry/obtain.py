"""The image that `run` wants and the store does not have, or may have in an older state."""

from __future__ import annotations

import os
from collections.abc import Callable

from drivers.api import Snapshotter
from runtime.errors import ImageError, NoSuchImage
from runtime.events import Listener, Message
from runtime.images.image import Image
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.registry.access import Access
from runtime.registry.pull import pull


def obtain(
    images: ImageStore, name: str, chosen: Callable[[], Snapshotter], tell: Listener, *, missing: NoSuchImage | None
) -> Image:
    """Pull `name` into the driver that is `chosen`, which is asked for late. Raises as pull(), and what is `missing`
    where it is nothing that a registry could have."""
    try:
        reference = parse(name)
    except ImageError as error:
        raise missing or error from None
    access = Access(os.environ)
    if missing is not None:
        tell(Message(f"Unable to find image '{reference}' locally"))
    return pull(images, access, reference, chosen(), tell).image
