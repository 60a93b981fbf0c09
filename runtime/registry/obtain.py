"""The image that `run` wants and the store does not have, or may have in an older state."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from drivers.api import Snapshotter
from runtime.errors import ImageError, NoSuchImage
from runtime.images.image import Image
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.registry.access import Access
from runtime.registry.progress import progress
from runtime.registry.pull import pull


def obtain(
    images: ImageStore, name: str, chosen: Callable[[], Snapshotter], *, missing: NoSuchImage | None
) -> Image:
    """Pull `name`, saying so on standard error, as the command's output is the container's. Raises as pull(), and
    what is `missing` where it is nothing that a registry could have."""
    try:
        reference = parse(name)
    except ImageError as error:
        raise missing or error from None
    access = Access(os.environ)
    shown = progress(sys.stderr)
    if missing is not None:
        shown.say(f"Unable to find image '{reference}' locally")
    return pull(images, access, reference, chosen(), shown).image
