"""<root>/index.json: which manifests are images, and by which references (image-spec image-index.md).

An OCI image index; each reference of an image is a descriptor with the annotation org.opencontainers.image.ref.name, an
image that lost its references one without. Written to a new file, made durable, renamed: a reader sees all of a change
or nothing. Changed under the store's lock only.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from drivers.disk import durable
from runtime.errors import ImageError
from runtime.images import document
from runtime.images.blobs import hex_of

_MARK = "oci-layout"
_REFERENCE = "org.opencontainers.image.ref.name"


class Listed(NamedTuple):
    """An image in the index: the size of its manifest in bytes, its references, sorted, and the manifest's type."""

    size: int
    references: tuple[str, ...]
    media_type: str = document.MANIFEST


# Manifest digest -> image, in the order in which the images came.
Index = dict[str, Listed]


def load(root: str) -> Index:
    """The index of the store at `root`; empty when there is none yet. ImageError when it is damaged, or gone."""
    path = os.path.join(root, "index.json")
    marked = os.path.exists(os.path.join(root, _MARK))  # looked for first: it is made after the first index
    index: Index = {}
    try:
        with open(path, "rb") as file:
            descriptors = document.decode(file.read())["manifests"]
        for descriptor in descriptors:
            reference = descriptor.get("annotations", {}).get(_REFERENCE)
            hex_of(descriptor["digest"])
            if type(descriptor["size"]) is not int or type(reference) not in (str, type(None)):
                raise TypeError
            found = index[descriptor["digest"]].references if descriptor["digest"] in index else ()
            references = tuple(sorted({*found, reference} - {None}))
            media_type = descriptor.get("mediaType", document.MANIFEST)
            index[descriptor["digest"]] = Listed(descriptor["size"], references, media_type)
    except FileNotFoundError:
        if marked:  # or all images would be taken for garbage
            raise ImageError(f"{path} is missing; restore it, or remove {root} and get the images again") from None
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ImageError(f"{path} is damaged; restore it, or remove {root} and get the images again") from None
    return index


def save(root: str, index: Index) -> None:
    """Replace the index."""
    descriptors: list[dict[str, Any]] = []
    for digest, (size, references, media_type) in index.items():
        plain = document.Descriptor(media_type, digest, size).encoded()
        named = [plain | {"annotations": {_REFERENCE: reference}} for reference in references]
        descriptors += named or [plain]
    _replace(root, "index.json", {"schemaVersion": 2, "mediaType": document.INDEX, "manifests": descriptors})


def holder(index: Index, name: str) -> str | None:
    """The manifest that has the reference `name`."""
    return next((manifest for manifest, listed in index.items() if name in listed.references), None)


def renamed(index: Index, manifest: str, listed: Listed, names: Iterable[str]) -> Index:
    """The index with `names` at `manifest`, and at no other; `listed` is what it is entered as if it is new."""
    fresh = set(names)
    changed = {other: without(entry, fresh) for other, entry in index.items()}
    entry = changed.get(manifest, listed)
    changed[manifest] = entry._replace(references=tuple(sorted({*entry.references, *fresh})))
    return changed


def without(listed: Listed, names: Collection[str]) -> Listed:
    return listed._replace(references=tuple(name for name in listed.references if name not in names))


def is_digest(name: str) -> bool:
    """Whether a name in the index is `NAME@DIGEST`, and no tag."""
    return "@" in name


def mark(root: str) -> None:
    """The file that makes a directory an OCI image layout; where it is, there is an index."""
    if not os.path.exists(os.path.join(root, _MARK)):
        _replace(root, _MARK, {"imageLayoutVersion": "1.0.0"})


def sweep(root: str) -> None:
    """Remove what a process left that was killed in save() or mark(). The lock is held."""
    for name in os.listdir(root):
        if name.endswith(durable.FRESH):
            os.unlink(os.path.join(root, name))


def _replace(root: str, name: str, content: dict[str, Any]) -> None:
    durable.replace(os.path.join(root, name), document.encode(content))  # one writer: the lock is held
