"""The archives of `docker save`: manifest.json names configurations, layers and tags (moby image/tarexport).

    manifest.json   [{"Config": FILE, "RepoTags": [NAME:TAG, …] or null, "Layers": [FILE, …]}, …], layers bottom up
    repositories    {NAME: {TAG: ID}}, of docker before 1.10; written still, and read by nobody

Layers are plain archives as docker writes them, but other tools compress them, and docker reads both. Since docker 25
such an archive is an OCI layout as well, with the files below blobs/sha256/.
"""

from __future__ import annotations

from typing import Any

from drivers.archive.errors import ArchiveError
from runtime.images import document, layout, members
from runtime.images.image import Image, Offer
from runtime.images.members import Members
from runtime.images.reference import parse

MANIFEST = "manifest.json"
REPOSITORIES = "repositories"
_IMAGES = 1000


def is_one(archive: Members) -> bool:
    return archive.has(MANIFEST)


def read(archive: Members) -> list[Offer]:
    """The images of the archive. Layers are not looked at. ArchiveError, ImageError for a name that none can have."""
    found = []
    for item in _items(archive):
        file, layers = item.get("Config"), item.get("Layers") or []
        if not isinstance(file, str) or not isinstance(layers, list) or not all(isinstance(one, str) for one in layers):
            raise ArchiveError(f"{MANIFEST} is none of docker's: it has no Config or Layers")
        if len(layers) > document.MAX_LAYERS:
            raise ArchiveError(f"it has an image of {len(layers)} layers, {document.MAX_LAYERS} are allowed")
        found.append(Offer(_names(item), members.document(archive, file), tuple(layers)))
    return found


def names(archive: Members) -> dict[str, tuple[str, ...]]:
    """The tags of each image by the digest of its configuration, in an archive that is an OCI layout as well."""
    found = {}
    for item in _items(archive) if is_one(archive) else []:
        algorithm, _, digest = str(item.get("Config")).removeprefix("blobs/").partition("/")
        found[f"{algorithm}:{digest}"] = _names(item)
    return found


def _items(archive: Members) -> list[dict[str, Any]]:
    try:
        items = document.decode_any(members.document(archive, MANIFEST))
    except ValueError as error:
        raise ArchiveError(f"{MANIFEST} {error}") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ArchiveError(f"{MANIFEST} is none of docker's: it is no array of objects")
    if len(items) > _IMAGES:
        raise ArchiveError(f"it has {len(items)} images, {_IMAGES} are allowed")
    return items


def _names(item: dict[str, Any]) -> tuple[str, ...]:
    tags = item.get("RepoTags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ArchiveError(f"{MANIFEST} is none of docker's: its RepoTags are no strings")
    return tuple(dict.fromkeys(str(name) for name in map(parse, tags) if not name.digest))


def written(images: list[tuple[Image, tuple[str, ...]]]) -> dict[str, Any]:
    """The documents of such an archive for images with their tags, by file name."""
    repositories: dict[str, dict[str, str]] = {}
    for image, tags in images:
        for name in map(parse, tags):
            repositories.setdefault(name.name, {})[name.tag] = image.id.removeprefix("sha256:")
    return {
        MANIFEST: [
            {
                "Config": layout.blob(image.id),
                "RepoTags": list(tags) or None,
                "Layers": [layout.blob(layer.digest) for layer in image.blobs],
            }
            for image, tags in images
        ],
        REPOSITORIES: repositories,
    }
