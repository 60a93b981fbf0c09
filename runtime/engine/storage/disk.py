"""What images and containers take on disk, and who shares what: `system df`, and how much a prune frees.

An image is a set of pieces, blobs of the store and snapshots of drivers; what is in two sets is stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from drivers.api import Kind, Snapshotter
from drivers.errors import DriverError
from runtime.engine.containers.container import Container
from runtime.engine.installation import Installation
from runtime.engine.state import State
from runtime.engine.storage.drivers import Away
from runtime.engine.storage.lost import Snapshot, without_record
from runtime.errors import NoSuchContainer
from runtime.images.image import Image
from runtime.images.unpack import chain_ids

# ("", digest of a blob), or (driver, chain id of a snapshot).
Piece = tuple[str, str]


class Held(NamedTuple):
    image: Image
    pieces: frozenset[Piece]
    containers: int


class Written(NamedTuple):
    """A container, and the bytes of what it changed."""

    container: Container
    state: State
    size: int


class Disk(NamedTuple):
    """Bytes of each piece, of what containers wrote, and of blobs of pulls that were broken off or go on; snapshots of
    containers that have no record; and drivers that could not be asked for theirs."""

    sizes: dict[Piece, int]
    images: list[Held]
    containers: list[Written]
    incoming: int
    ownerless: list[Snapshot]
    away: list[Away]

    def size(self, held: Iterable[Held]) -> int:
        """Bytes of all these images together."""
        return sum(self.sizes[piece] for piece in {piece for one in held for piece in one.pieces})

    def unique(self, held: Held) -> int:
        """Bytes that go when this image goes."""
        others = {piece for other in self.images if other is not held for piece in other.pieces}
        return sum(self.sizes[piece] for piece in held.pieces - others)


def measure(installation: Installation) -> Disk:
    """Raises ImageError for a damaged store; a driver that does not work here, and what is damaged in one, counts
    nothing."""
    images = installation.images
    listed = images.list()
    sizes: dict[Piece, int] = {("", digest): size for digest, size in images.blob_sizes().items()}
    containers = {container.id: container for container in installation.containers}
    written: dict[str, int] = {}
    ownerless: list[Snapshot] = []
    away: list[Away] = []
    for name, driver in installation.drivers.used(away=away):
        with suppress(DriverError, OSError):
            ownerless += without_record(installation, name)
        with suppress(DriverError, OSError):
            sizes |= {(name, chain): size for chain, size in snapshots(driver).items()}
        for container in containers.values():
            if container.config.driver == name:
                with suppress(DriverError, OSError):
                    written[container.id] = driver.usage(container.id).size
    used = [container.config.image_id for container in containers.values()]
    found = []
    for container in containers.values():
        with suppress(NoSuchContainer):
            found.append(Written(container, container.state(), written.get(container.id, 0)))
    return Disk(
        sizes,
        [Held(image, frozenset(_pieces(image, sizes)), used.count(image.id)) for image in listed],
        found,
        images.incoming_size(),
        ownerless,
        away,
    )


def _pieces(image: Image, sizes: dict[Piece, int]) -> Iterator[Piece]:
    blobs = {image.manifest, image.id, *(blob.digest for blob in image.blobs)}
    chains = set(chain_ids(image.layers))
    return (piece for piece in sizes if piece[1] in (chains if piece[0] else blobs))


def snapshots(driver: Snapshotter) -> dict[str, int]:
    """The bytes of each layer of images that the driver has unpacked, by chain id."""
    found = {}
    for info in driver.walk():
        if info.kind is Kind.COMMITTED and info.name.startswith("sha256:"):
            with suppress(DriverError):  # removed meanwhile
                found[info.name] = driver.usage(info.name).size
    return found
