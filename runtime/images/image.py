"""What the store tells of an image, what an archive offers, and which names go when one is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from runtime.errors import ImageError, ImageInUse
from runtime.images import document
from runtime.images.document import Configuration, Descriptor, Manifest
from runtime.images.index import Listed, is_digest
from runtime.images.reference import parse


@dataclass(frozen=True)
class Image:
    """What the store knows of an image.

    `id` is the digest of its configuration, `references` are `NAME:TAG` and `NAME@DIGEST`, sorted; `layers` are diff
    ids and `blobs` the layers as they are stored, both from the bottom up; `config` is the configuration's part for
    `run` (Cmd, Entrypoint, Env, WorkingDir, User …), `created` RFC 3339, `size` the bytes of its layers as they are
    stored.
    `manifest` is the digest of its manifest, of type `media_type`.
    """

    id: str
    references: tuple[str, ...]
    layers: tuple[str, ...]
    config: dict[str, Any]
    created: str
    size: int
    manifest: str = ""
    media_type: str = document.MANIFEST
    blobs: tuple[Descriptor, ...] = ()
    architecture: str = ""

    @property
    def name(self) -> str:
        """For a sentence: a reference, or the beginning of the id."""
        return next(iter((*self.tags, *self.references)), self.id[7:19])

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(name for name in self.references if not is_digest(name))

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(name for name in self.references if is_digest(name))


class Offer(NamedTuple):
    """An image that an archive offers: `names` as references, `layers` the archive's files, from the bottom up.

    Where the archive has no `manifest` it is b"", to be made, and `blobs`, the layers' descriptors, are empty.
    """

    names: tuple[str, ...]
    configuration: bytes
    layers: tuple[str, ...]
    manifest: bytes = b""
    media_type: str = document.MANIFEST
    blobs: tuple[Descriptor, ...] = ()


class Removed(NamedTuple):
    """What remove() did: references taken away, ids of images and layers deleted."""

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]


def names_to_go(image: Image, text: str) -> tuple[str, ...]:
    """Which references of `image` go with the one that `text` is, or with all of the image when `text` is its id.

    With the last tag of a repository go its digests, which nobody would think of removing. ImageInUse for the id of an
    image with several tags.
    """
    try:
        name = parse(text)
    except ImageError:
        name = None
    if name is None or name.key not in image.references:
        if len(image.tags) > 1:
            raise ImageInUse(f"image {text} has several names, remove each: {', '.join(image.tags)}")
        return image.references
    if name.digest or any(other != name.key and parse(other).name == name.name for other in image.tags):
        return (name.key,)
    return (name.key, *(other for other in image.digests if parse(other).name == name.name))


def described(manifest: str, listed: Listed, parsed: Manifest, configuration: Configuration) -> Image:
    """The image of the manifest with that digest, as its documents tell. ValueError when they do not fit together."""
    if len(configuration.diff_ids) != len(parsed.layers):
        raise ValueError(f"has {len(parsed.layers)} layers, and its configuration another number")
    return Image(
        id=parsed.config.digest,
        references=listed.references,
        layers=configuration.diff_ids,
        config=configuration.config,
        created=configuration.created,
        size=sum(layer.size for layer in parsed.layers),
        manifest=manifest,
        media_type=listed.media_type,
        blobs=parsed.layers,
        architecture=configuration.platform.architecture,
    )
