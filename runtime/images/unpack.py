"""An image's layers as a driver's snapshots.

A layer's snapshot is named by its chain id (image-spec config.md, "Layer ChainID"), so images share what they have in
common from the bottom up. One process of a store unpacks at a time, under `unpack.lock`; the next finds the work done:

    lock │ what a killed process left is removed │ per missing layer: prepare, extract, commit

So under the lock every snapshot `unpack-…` is a left-over.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress

from drivers.api import Kind, Snapshotter
from drivers.archive.errors import ArchiveError
from drivers.errors import InUse, NotFound, TimedOut
from runtime.errors import ImageError
from runtime.images.document import Descriptor
from runtime.images.image import Image
from runtime.images.store import ImageStore

LOCK = "unpack.lock"
_KEY = "unpack-"
_PATIENCE = 1800.0  # seconds: somebody else's image of gigabytes on a slow disk


def chain_ids(layers: Sequence[str]) -> list[str]:
    """The chain id of each of `layers` (diff ids, from the bottom up)."""
    chains: list[str] = []
    for diff_id in layers:
        text = f"{chains[-1]} {diff_id}" if chains else diff_id
        chains.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if chains else diff_id)
    return chains


def unpack(store: ImageStore, image: Image, snapshotter: Snapshotter) -> str:
    """The name of the committed snapshot with `image`'s tree in this driver; layers it lacks are unpacked first. "" for
    an image without layers (FROM scratch), which is an empty tree.

    Raises NoSuchImage when the image is removed meanwhile, ImageError for a damaged or refused layer, DriverError,
    OSError; neither snapshots nor mounts are left then, but for whole layers.
    """
    chains = chain_ids(image.layers)
    if not chains:
        return ""
    if _committed(snapshotter, chains[-1]):
        return chains[-1]
    with store.locked(LOCK, patience=_PATIENCE, purpose=f"unpacking {image.name}"):
        take_back(snapshotter)
        parent = ""
        for layer, chain in zip(zip(image.layers, image.blobs, strict=True), chains, strict=True):
            if not _committed(snapshotter, chain):
                _unpack_layer(store, image, snapshotter, *layer, chain, parent)
            parent = chain
    return parent


def forget_snapshots(store: ImageStore, snapshotter: Snapshotter) -> list[str]:
    """Remove what this driver holds of images that are no longer in the store; the names of what was removed.

    A snapshot on which something else is built (a container's) stays until a later call. To be called after
    ImageStore.remove, for each driver that is in use; also repairs what an earlier call could not finish, and calls
    take_back().
    """
    removed = []
    with store.locked(LOCK, patience=_PATIENCE, purpose="removing the layers of images that are gone"):
        take_back(snapshotter)
        # Asked under the lock: what was unpacked until now belongs to images that were in the store then.
        for name in unwanted(store, snapshotter):
            try:
                snapshotter.remove(name)
            except (InUse, NotFound):
                continue
            removed.append(name)
    return removed


def unwanted(store: ImageStore, snapshotter: Snapshotter) -> list[str]:
    """The names of the layers that this driver has of images that are no longer in the store, children first."""
    wanted = {chain for image in store.list() for chain in chain_ids(image.layers)}
    committed = (info.name for info in snapshotter.walk() if info.kind is Kind.COMMITTED)
    return [name for name in committed if name.startswith("sha256:") and name not in wanted][::-1]


def _committed(snapshotter: Snapshotter, name: str) -> bool:
    try:
        return snapshotter.stat(name).kind is Kind.COMMITTED
    except NotFound:
        return False


def take_back(snapshotter: Snapshotter) -> None:
    """Remove what any process that was killed has left in a driver: views of a reader, what is half-made or half
    deleted, and, as the store's lock is held and nobody is in _unpack_layer() now, what was killed in there.

    What is in use is left to the next that comes here: 0.1.0 unpacked at a mount point in the store, and a process that
    is killed leaves such a mount until the machine is restarted.
    """
    from drivers.diff import snapshots  # late: most runs find their image unpacked

    snapshots.take_back(snapshotter)
    with suppress(OSError, TimedOut):
        snapshotter.cleanup()
    for info in list(snapshotter.walk()):
        if info.name.startswith(_KEY) and info.kind is Kind.ACTIVE:
            with suppress(InUse):
                snapshotter.remove(info.name)


def _unpack_layer(
    store: ImageStore,
    image: Image,
    snapshotter: Snapshotter,
    diff_id: str,
    blob: Descriptor,
    chain: str,
    parent: str,
) -> None:
    """Make the committed snapshot `chain` on `parent` (a chain id, or "") of one layer's archive."""
    from drivers.archive import target
    from runtime.images.layer import put_out

    with store.open_blob(blob.digest) as archive:
        key = _KEY + os.urandom(8).hex()
        snapshotter.prepare(key, parent)
        try:
            with target.opened(snapshotter, key) as place:
                put_out(archive, place, diff_id)
            snapshotter.commit(chain, key)
        except BaseException as error:
            _give_up(snapshotter, key)
            if isinstance(error, ArchiveError):
                what = f"cannot unpack layer {diff_id[:19]} of image {image.name}"
                if isinstance(full := error.__cause__, OSError) and full.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise ImageError(f"{what}: {full.strerror}; {snapshotter.how_to_make_room()}") from error
                raise ImageError(f"{what}: {error}") from error
            raise


def _give_up(snapshotter: Snapshotter, key: str) -> None:
    """Remove a snapshot that failed, whose failure is what the user is to hear of. A full disk may refuse the first
    time: the driver's store gives up a reserve then. What stays nevertheless, the next unpacking removes."""
    for _ in range(2):
        with suppress(OSError, InUse):
            snapshotter.remove(key)
            return
