"""Removing the images that nobody uses, and what killed pulls left."""

from __future__ import annotations

from contextlib import suppress

from runtime.engine.images.remove import in_use
from runtime.engine.installation import Installation
from runtime.engine.storage import leftovers
from runtime.engine.storage.pruned import Pruned
from runtime.errors import ImageInUse, NoSuchImage
from runtime.images.image import Removed


def prune(installation: Installation, *, named: bool = False) -> Pruned[Removed]:
    """Remove the images that no container is made of: those without a tag, or `named` ones too; and what killed pulls
    left of others."""
    kept = installation.images
    used = in_use(installation)
    before = sum(kept.blob_sizes().values())
    removed: list[Removed] = []
    for image in kept.list():
        if image.id in used or (image.tags and not named):
            continue
        # By its manifest, which digests of other repositories may still hold; its id may be that of another with a tag.
        for name in (*image.tags, image.manifest):
            with suppress(NoSuchImage, ImageInUse):
                removed.append(kept.remove(name, in_use=lambda: in_use(installation)))
    freed = before - sum(kept.blob_sizes().values())
    forgotten, failures, away = leftovers.take_back(installation)
    return Pruned(removed, freed + forgotten + kept.prune_incoming(), failures, away)
