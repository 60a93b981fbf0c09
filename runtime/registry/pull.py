"""An image from a registry: index, manifest, configuration and layers into the store, and into a driver.

    index -> manifest of the platform -> blobs, three at a time, into <images>/incoming │ admit (unpack) │ publish

A pull that fails or is killed leaves what has come of blobs, and the next one goes on from there.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from drivers.api import Snapshotter
from runtime.errors import ImageError, NoSuchImage, RegistryError
from runtime.events import Listener, Message, Notice, Progress, unheard
from runtime.images import document
from runtime.images.admit import admit
from runtime.images.document import Descriptor, Manifest
from runtime.images.image import Image
from runtime.images.incoming import Incoming
from runtime.images.platforms import Platform, compatible, runs
from runtime.images.reference import Reference, short
from runtime.images.store import ImageStore
from runtime.registry.access import Access
from runtime.registry.client import Client, Fetched
from runtime.registry.failures import printable
from runtime.registry.workers import together

_NESTED = 2  # indexes in an index


class Pulled(NamedTuple):
    """`digest` is what the reference names at the registry: an index's, or the manifest's."""

    image: Image
    digest: str
    newer: bool


def pull(
    store: ImageStore, access: Access, reference: Reference, driver: Snapshotter, tell: Listener, *,
    platform: Platform | None = None,
) -> Pulled:  # fmt: skip
    """Make the store have what the registry has as `reference`, unpacked in `driver`. `tell` hears how it goes.

    Raises RegistryError, ImageError, DriverError, OSError; the store has what it had before then, and what has come is
    kept for another try.
    """
    seen: list[str] = []

    def attempt(client: Client) -> Pulled:
        top = client.manifest(reference.digest or reference.tag)
        if not seen:
            seen.append(top.digest)
            tell(Message(f"{reference.tag or reference.digest}: Pulling from {reference.repository}"))
        return _pull(store, client, reference, driver, tell, top, platform)

    try:
        pulled = access.pulling(reference, attempt, lambda text: tell(Notice(text)))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(f"cannot pull {reference}: no space is left at {store.root}; free some") from error
        raise
    tell(Message(f"Digest: {pulled.digest}"))
    news = "Downloaded newer image for" if pulled.newer else "Image is up to date for"
    tell(Message(f"Status: {news} {reference}"))
    return pulled


def pull_all(
    store: ImageStore, access: Access, reference: Reference, driver: Snapshotter, tell: Listener, *,
    platform: Platform | None = None,
) -> list[Pulled]:  # fmt: skip
    """All tags of `reference`'s repository."""
    tags = access.pulling(reference, lambda client: client.tags(), lambda text: tell(Notice(text)))
    if not tags:
        raise RegistryError(f"{reference.name} has no tags")
    for tag in tags:
        if not _is_tag(tag):
            raise RegistryError(f"{reference.name} lists {printable(tag)!r} among its tags, which can be none")
    return [
        pull(store, access, reference._replace(tag=tag, digest=""), driver, tell, platform=platform) for tag in tags
    ]


def _is_tag(text: str) -> bool:
    """distribution-spec, "Pulling manifests": the form of a tag."""
    return bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", text))


def _pull(
    store: ImageStore, client: Client, reference: Reference, driver: Snapshotter, tell: Listener, top: Fetched,
    platform: Platform | None,
) -> Pulled:  # fmt: skip
    chosen = _choose(client, top, platform)
    try:
        parsed = document.parse_manifest(chosen.data)
    except ValueError as error:
        raise RegistryError(f"the manifest of {reference} {error}") from None
    names = [f"{reference.name}@{top.digest}", *([] if reference.digest else [f"{reference.name}:{reference.tag}"])]
    newer = not _known(store, parsed, chosen, names)
    if newer:
        if platform is not None and chosen is top:
            _check_platform(client, reference, parsed, platform)
        _check_foreign(store, client, reference, parsed)
        _fetch(store, client, parsed, tell)
    # Also for what is known: a killed pull may have come as far as here, and another driver may lack it.
    index = top.digest if top.digest != chosen.digest else ""
    admit(store, chosen.data, chosen.media_type, names, driver)
    image = store.publish(chosen.data, chosen.media_type, names, index=index)
    if newer:
        for layer in dict.fromkeys(parsed.layers):
            tell(Progress(short(layer.digest), "Pull complete"))
    return Pulled(image, top.digest, newer)


def _choose(client: Client, top: Fetched, platform: Platform | None) -> Fetched:
    """The manifest for the platform; RegistryError when there is none."""
    chosen = top
    for _ in range(_NESTED + 1):
        if chosen.media_type not in document.INDEXES:
            return chosen
        try:
            entry = document.choose_platform(document.parse_index(chosen.data), platform)
        except ValueError as error:
            raise RegistryError(f"the index of {client.name} {error}") from None
        chosen = client.manifest(entry.digest)
    raise RegistryError(f"the index of {client.name} is nested more than {_NESTED} times")


def _known(store: ImageStore, parsed: Manifest, chosen: Fetched, names: Sequence[str]) -> bool:
    """Whether the image is all there, under these names: then nothing need come."""
    try:
        named = all(store.get(name).manifest == chosen.digest for name in names)
    except (NoSuchImage, ImageError):
        return False
    return named and all(store.has(blob.digest) for blob in (parsed.config, *parsed.layers))


def _fetch(store: ImageStore, client: Client, parsed: Manifest, tell: Listener) -> None:
    layers = list(dict.fromkeys(parsed.layers))
    for layer in layers:
        tell(Progress(short(layer.digest), "Pulling fs layer"))
    # The configuration first: when it cannot be had, the rest need not come.
    together([functools.partial(_receive, store, client, parsed.config, unheard)], client.abort)
    together([functools.partial(_receive, store, client, layer, tell) for layer in layers], client.abort)


def _receive(store: ImageStore, client: Client, wanted: Descriptor, tell: Listener) -> None:
    name = short(wanted.digest)
    with store.receive(wanted.digest, wanted.size) as incoming:
        if incoming.done:
            tell(Progress(name, "Already exists"))
            return
        _download(client, wanted, incoming, tell)
    tell(Progress(name, "Download complete"))


def _download(client: Client, wanted: Descriptor, incoming: Incoming, tell: Listener) -> None:
    def arrived(position: int) -> None:
        if wanted.size:
            tell(Progress(short(wanted.digest), "Downloading", position, wanted.size))

    while True:
        resumed = incoming.position > 0
        client.blob(wanted, incoming, arrived)
        try:
            incoming.finish()
        except ImageError as error:
            if not resumed:
                raise RegistryError(f"{client.endpoint.name} lies, or was tampered with: {error}") from None
            continue  # the part that was there may be at fault, which is gone now: once more, from the beginning
        return


def _check_foreign(store: ImageStore, client: Client, reference: Reference, parsed: Manifest) -> None:
    """A foreign layer is taken where the registry has it, and never from the addresses that its manifest names."""
    for layer in filter(document.is_foreign, parsed.layers):
        if not store.has(layer.digest) and not client.has_blob(layer.digest):
            raise RegistryError(
                f"{reference} has a foreign layer (type {layer.media_type}), which is not the registry's to give; such "
                "images, of Windows mostly, are not for this runtime"
            )


def _check_platform(client: Client, reference: Reference, parsed: Manifest, platform: Platform) -> None:
    """An image without an index says its platform in its configuration only."""
    try:
        found = document.parse_configuration(client.document(parsed.config)).platform
    except ValueError as error:
        raise RegistryError(f"{reference} {error}") from None
    if not any(runs(found, one) for one in compatible(platform)):
        raise RegistryError(f"{reference} is an image for {str(found)[:300]}, not for {platform}")
