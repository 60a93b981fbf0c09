"""Images out of archives of other tools, or of ours: `runtime load`.

    members │ layout or dockerarchive: what is offered │ each layer into an unnamed blob, hashed, judged │ store.publish

Nothing of an image has a name before all of it is verified: a load that fails or is killed leaves nothing. Images that
came before it in the archive stay.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack

from drivers.archive.decompress import packing
from drivers.archive.errors import ArchiveError, shown
from drivers.archive.limits import DEFAULT, Limits
from runtime.errors import ImageError
from runtime.images import dockerarchive, document, layer, layout
from runtime.images.blobs import Writer, digest_of
from runtime.images.document import Descriptor
from runtime.images.image import Image, Offer
from runtime.images.members import Members, opened, pieces
from runtime.images.store import ImageStore

_TYPES = {"gzip": document.LAYER_GZIP, "zstd": document.LAYER_ZSTD, "": document.LAYER}


def load(store: ImageStore, path: str, *, limits: Limits = DEFAULT) -> Iterator[tuple[Image, tuple[str, ...]]]:
    """Each image of the OCI layout or docker archive at `path`, a directory, a file or a pipe, once it is in the store,
    and the names that the archive gave it.

    ImageError names the archive and what is wrong with it.
    """
    try:
        with opened(path, store.root, limits) as archive:
            for offer in offers(archive):
                yield take(store, archive, offer, limits), offer.names
    except (ArchiveError, ImageError, ValueError) as error:
        raise ImageError(f"cannot load {path}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(f"cannot load {path}: no space is left at {store.root}; free some") from error
        raise ImageError(f"cannot load {path}: {error.strerror}") from error


def offers(archive: Members) -> list[Offer]:
    """What the archive has, by its OCI index where there is one: that keeps digests. ArchiveError, ValueError."""
    found = layout.read(archive, dockerarchive.names(archive)) if layout.is_one(archive) else []
    if not found and dockerarchive.is_one(archive):
        found = dockerarchive.read(archive)
    if not found:
        raise ArchiveError("there is no image in it: no OCI layout, and none that docker 1.10 or later has saved")
    return found


def take(store: ImageStore, archive: Members, offer: Offer, limits: Limits = DEFAULT) -> Image:
    """Verify what is offered, and make it an image of the store. ArchiveError, ImageError, ValueError, OSError."""
    diff_ids = document.parse_configuration(offer.configuration).diff_ids
    if len(diff_ids) != len(offer.layers):
        raise ArchiveError(f"an image has {len(offer.layers)} layers, and its configuration says {len(diff_ids)}")
    # A layer that an image of ours has under the same diff id was judged before.
    known = {
        (blob.digest, diff_id)
        for image in store.list()
        for blob, diff_id in zip(image.blobs, image.layers, strict=True)
    }
    with ExitStack() as stack:
        fresh: list[Writer] = []
        taken: dict[tuple[str, str], Descriptor] = {}
        for number, (file, diff_id) in enumerate(zip(offer.layers, diff_ids, strict=True)):
            said = offer.blobs[number] if offer.blobs else None
            if (file, diff_id) in taken:
                continue  # empty layers repeat
            if said is not None and (said.digest, diff_id) in known:
                taken[file, diff_id] = said
                continue
            blob = stack.enter_context(store.writer())
            taken[file, diff_id] = _take_layer(archive, file, diff_id, said, blob, limits, upper=number > 0)
            fresh.append(blob)
        configuration = stack.enter_context(store.writer())
        configuration.write(offer.configuration)
        manifest = offer.manifest or document.encode(document.manifest(
            Descriptor(document.CONFIG, digest_of(offer.configuration), len(offer.configuration)),
            [taken[pair] for pair in zip(offer.layers, diff_ids, strict=True)],
        ))  # fmt: skip
        return store.publish(manifest, offer.media_type, offer.names, fresh=[*fresh, configuration])


def _take_layer(
    archive: Members, file: str, diff_id: str, said: Descriptor | None, blob: Writer, limits: Limits, *, upper: bool
) -> Descriptor:
    """Copy and judge the layer in `file`; ArchiveError when it is not the one that is `said`, or not `diff_id`'s."""
    with archive.open(file) as (source, size):
        if said is not None and size != said.size:
            raise ArchiveError(f"it has {size} bytes, and the manifest says {said.size}", entry=os.fsencode(file))
        first = source.read(6)
        packed = packing(first)
        if said is None and packed not in _TYPES:
            raise ArchiveError("it is packed with bzip2 or xz; pack it with gzip or zstd", entry=os.fsencode(file))
        blob.write(first)
        for piece in pieces(source):
            blob.write(piece)
    if said is not None and blob.digest != said.digest:
        raise ArchiveError("it is not what its name says; get the archive again", entry=os.fsencode(file))
    try:
        layer.check(blob.fileno(), diff_id, upper=upper, limits=limits)
    except ArchiveError as error:
        raise ArchiveError(f"{shown(os.fsencode(file))}: {error}") from error
    return said or Descriptor(_TYPES[packed], blob.digest, blob.size)
