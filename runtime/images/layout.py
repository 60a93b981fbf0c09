"""OCI image layouts of other tools, as directories and as archives (image-spec image-layout.md).

    oci-layout   index.json -> blobs/sha256/HEX: (index ->) manifest -> configuration, layers

An entry's name is its annotation io.containerd.image.name, or org.opencontainers.image.ref.name where that is a
reference and no mere tag: skopeo and umoci write "latest" there, which says nothing of what the image is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from drivers.archive.errors import ArchiveError
from runtime.errors import ImageError
from runtime.images import document, members
from runtime.images.blobs import digest_of, hex_of
from runtime.images.document import Descriptor, Listed
from runtime.images.image import Offer
from runtime.images.members import Members
from runtime.images.reference import parse

MARK = "oci-layout"
INDEX = "index.json"
FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
_NESTED = 4  # an index in an index in …


def blob(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


def is_one(archive: Members) -> bool:
    return archive.has(MARK) and archive.has(INDEX)


def read(archive: Members, names: Mapping[str, tuple[str, ...]]) -> list[Offer]:
    """The images of a layout; of one for several platforms this machine's. Signatures and the like may lie beside them.

    `names` gives references by configuration digest for images that the layout has no name for. Documents are verified,
    layers are not. ArchiveError.
    """
    index = document.parse_index(members.document(archive, INDEX))
    found: dict[str, Offer] = {}
    listed = [(name, *_manifest(archive, descriptor)) for name, descriptor in _chosen(archive, index)]
    images = [one for one in listed if not document.is_artifact(one[1])]
    for name, manifest, media_type in images or listed:
        parsed = document.parse_manifest(manifest)
        known = found.get(digest_of(manifest))
        found[digest_of(manifest)] = Offer(
            names=(*(known.names if known else ()), *([name] if name else ())),
            configuration=_verified(archive, parsed.config),
            layers=tuple(blob(layer.digest) for layer in parsed.layers),
            manifest=manifest,
            media_type=media_type,
            blobs=parsed.layers,
        )
    return [
        offer._replace(names=offer.names or names.get(digest_of(offer.configuration), ())) for offer in found.values()
    ]


def _chosen(archive: Members, index: Iterable[Listed]) -> Iterable[tuple[str, Descriptor]]:
    """The entries to load, with their names ("": none): one for each name if its entries differ in platform only."""
    groups: dict[str, list[Listed]] = {}
    for entry in index:
        if entry.platform and entry.platform.os == "unknown":
            continue  # buildkit's attestations, which are not images
        groups.setdefault(_name(entry.annotations), []).append(entry)
    for name, entries in groups.items():
        if len(entries) > 1 and all(entry.platform for entry in entries):
            yield name, document.choose_platform(_there(archive, entries))
        else:
            yield from ((name, entry.descriptor) for entry in entries)


def _name(annotations: Mapping[str, str]) -> str:
    full = annotations.get(FULL_NAME, "")
    text = full or annotations.get(REF_NAME, "")
    if not full and not {":", "/"} & set(text):
        return ""
    try:
        name = parse(text)
    except ImageError:
        if full:
            raise
        return ""  # the specification allows more in a ref.name than a reference has
    return "" if name.digest else str(name)


def _there(archive: Members, entries: Iterable[Listed]) -> list[Listed]:
    """Docker saves an index whole, and of its images those that it has."""
    return [entry for entry in entries if archive.has(blob(entry.descriptor.digest))]


def _manifest(archive: Members, descriptor: Descriptor) -> tuple[bytes, str]:
    for _ in range(_NESTED):
        data = _verified(archive, descriptor)
        media_type = document.media_type(data, descriptor.media_type)
        if media_type not in document.INDEXES:
            return data, media_type
        descriptor = document.choose_platform(_there(archive, document.parse_index(data)))
    raise ArchiveError(f"its indexes are nested more than {_NESTED} times")


def _verified(archive: Members, descriptor: Descriptor) -> bytes:
    data = members.document(archive, blob(descriptor.digest))
    if digest_of(data) != descriptor.digest or len(data) != descriptor.size:
        raise ArchiveError(f"{blob(descriptor.digest)} is not what its name says; get the archive again")
    return data
