"""An image from elsewhere, before it becomes one of the store's: unpacked at once, and refused if it cannot be."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.api import Snapshotter
from runtime.images.store import ImageStore
from runtime.images.unpack import unpack


def admit(store: ImageStore, manifest: bytes, media_type: str, names: Sequence[str], driver: Snapshotter) -> str:
    """Unpack what has been received for `manifest` into `driver`, verifying the diff ids; the name of the snapshot.

    To be called before store.publish() with the same arguments: a refused image has then taken no other's name, and the
    store is as it was. Raises as unpack() does; ImageError for a refused one.
    """
    image = store.received(manifest, media_type, names)
    return unpack(store, image, driver)
