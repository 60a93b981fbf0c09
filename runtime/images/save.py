"""Images into an archive that other tools read: `runtime save`.

One archive is an OCI layout and docker's own form at once, as docker writes it since version 25; both name the same
files. It has the blobs as the store has them, so that digests stay, and the same images give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from drivers.archive.reader import Entry, Kind
from drivers.archive.writer import Writer
from runtime.errors import ImageError, NoSuchImage
from runtime.images import dockerarchive, document, layout
from runtime.images.image import Image
from runtime.images.members import pieces
from runtime.images.reference import parse
from runtime.images.store import ImageStore

Chosen = list[tuple[Image, tuple[str, ...]]]


class _File(NamedTuple):
    name: str
    size: int
    content: Iterable[bytes]


def choose(store: ImageStore, references: Sequence[str]) -> Chosen:
    """The images to save, each once, with the tags to save it under: those that are written, all of a repository when
    only its name is, none for an id. NoSuchImage."""
    found: dict[str, tuple[Image, dict[str, None]]] = {}
    for text in references:
        for image, tags in _named(store, text):
            found.setdefault(image.manifest, (image, {}))[1].update(dict.fromkeys(tags))
    return [(image, tuple(tags)) for image, tags in found.values()]


def _named(store: ImageStore, text: str) -> list[tuple[Image, list[str]]]:
    try:
        name = parse(text)
    except ImageError:
        return [(store.get(text), [])]
    whole = not name.digest and not text.endswith(f":{name.tag}")
    listed = [
        (image, [tag for tag in image.tags if (whole and parse(tag).name == name.name) or tag == name.key])
        for image in store.list()
    ]
    if chosen := [(image, tags) for image, tags in listed if tags]:
        return chosen
    try:
        return [(store.get(text), [])]
    except NoSuchImage:
        raise NoSuchImage(f"there is no image {text!r}; see 'runtime images'") from None


def archive(store: ImageStore, images: Chosen, write: Callable[[bytes], object], *, docker: bool = True) -> None:
    """Give the tar archive of `images` to `write`; without `docker` it is an OCI layout only.

    ImageError when a blob turns out to be damaged; what was written is not to be used then.
    """
    out = Writer(write)
    directories = ["blobs/", "blobs/sha256/"]
    for file in _files(store, images, docker=docker):
        while directories and file.name.startswith(directories[0]):
            out.add(_entry(directories.pop(0), Kind.DIRECTORY, 0))
        out.add(_entry(file.name, Kind.FILE, file.size), file.content)
    out.finish()


def directory(store: ImageStore, images: Chosen, path: str) -> None:
    """Make the new directory `path` an OCI layout of `images`. ImageError, OSError; what it has is not to be used
    then."""
    os.makedirs(os.path.join(path, "blobs", "sha256"))
    for file in _files(store, images, docker=False):
        with open(os.path.join(path, file.name), "xb") as out:
            for piece in file.content:
                out.write(piece)


def _entry(name: str, kind: Kind, size: int) -> Entry:
    mode = 0o755 if kind is Kind.DIRECTORY else 0o644
    return Entry(name.encode(), kind, mode, 0, 0, size, 0, b"", 0, 0, {}, 0)


def _files(store: ImageStore, images: Chosen, *, docker: bool) -> Iterator[_File]:
    """Documents, then blobs by digest."""
    documents: dict[str, Any] = {
        layout.MARK: {"imageLayoutVersion": "1.0.0"},
        layout.INDEX: {
            "schemaVersion": 2,
            "mediaType": document.INDEX,
            "manifests": [entry for image, tags in images for entry in _listed(store, image, tags)],
        },
        **(dockerarchive.written(images) if docker else {}),
    }
    for name, content in documents.items():
        data = document.encode(content)
        yield _File(name, len(data), [data])
    needed = {digest for image, _ in images for digest in (image.manifest, image.id)}
    needed |= {layer.digest for image, _ in images for layer in image.blobs}
    for digest in sorted(needed):
        with store.open_blob(digest) as blob:
            yield _File(layout.blob(digest), os.fstat(blob.fileno()).st_size, _verified(pieces(blob), digest))


def _listed(store: ImageStore, image: Image, tags: Sequence[str]) -> list[dict[str, Any]]:
    plain = document.Descriptor(image.media_type, image.manifest, len(store.read(image.manifest))).encoded()
    named = []
    for name in map(parse, tags):
        full = f"{name.registry}/{name.repository}:{name.tag}"
        named.append(plain | {"annotations": {layout.FULL_NAME: full, layout.REF_NAME: name.tag}})
    return named or [plain]


def _verified(content: Iterable[bytes], digest: str) -> Iterator[bytes]:
    """The last piece is held back until all of it is known to be right: whoever has as much as it wants stops there."""
    read = hashlib.sha256()
    held = b""
    for piece in content:
        if held:
            yield held
        read.update(piece)
        held = piece
    if f"sha256:{read.hexdigest()}" != digest:
        raise ImageError(f"{digest} is damaged on disk; remove its image and get it again")
    yield held
