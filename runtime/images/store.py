"""The image store: an OCI image layout, shared by all drivers of one root and by any number of processes.

    <root>/                 0700: layers hold set-id files (CVE-2021-41091)
        oci-layout  index.json  blobs/sha256/…
        incoming/           blobs that are being received (runtime.images.incoming)
        lock                flock: held to change the index or the names of blobs
        unpack.lock         flock: held to unpack or to forget snapshots (runtime.images.unpack)
        reserve/            room that is given up when the disk is full (drivers.disk.reserve)

Manifest, configuration and layers are kept byte for byte as they came, compressed ones too: what is pushed or saved has
the digest that was pulled or loaded. A layer is named by the digest of its blob; its diff id, that of the uncompressed
archive, is in the configuration.

Importing, loading: layers are written without a name and checked │ lock: blobs get their names, and the index changes.
Pulling: receive() each blob │ the same. What a process leaves that is killed under the lock, blobs that no image has,
is removed when the store is next opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from drivers.disk import locks, ownership, reserve
from drivers.errors import TimedOut, Unavailable
from runtime.errors import ImageError, ImageInUse, NoSuchImage
from runtime.images import document, index
from runtime.images.blobs import Blobs, Writer, digest_of
from runtime.images.document import Configuration, Manifest
from runtime.images.image import Image, Removed, described, names_to_go
from runtime.images.incoming import Arrivals, Incoming
from runtime.images.index import Index, Listed
from runtime.images.reference import parse

_ID_PREFIX = 4  # characters of an id that are enough to mean it, when it is the only one


class ImageStore:
    """The store at `root`, made if missing. Thread-safe; any number of objects and processes may share a root."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        try:
            if not os.path.exists(os.path.join(self.root, "oci-layout")):
                ownership.check_mounted(self.root)
            ownership.own_directory(self.root)
        except Unavailable as error:
            raise ImageError(str(error)) from error
        self._blobs = Blobs(self.root)
        self._arrivals = Arrivals(self.root, self._blobs)
        # Whoever holds the lock leaves nothing, or else the next one to open the store collects. That the index is
        # damaged is said to whoever needs it.
        with contextlib.suppress(TimedOut, ImageError), self.locked("lock", patience=0):
            self._collect(self._index())
            reserve.take(self._reserve)

    def locked(
        self, name: str, *, patience: float = locks.PATIENCE, purpose: str = ""
    ) -> AbstractContextManager[int]:
        """Hold the lock file `name`. TimedOut says who else holds it, after `patience` seconds; those who wait for us
        are told the `purpose`."""
        return locks.locked(os.path.join(self.root, name), patience=patience, purpose=purpose)

    def close(self) -> None:
        """Let go of what receive() holds, for others to sweep. The store can be used on; twice is fine."""
        self._arrivals.leave()

    # Reading. Without the lock: an index is replaced as a whole, and blobs never change.

    def get(self, reference: str) -> Image:
        """The image by a reference, by its manifest's digest, its id, or the beginning of that. NoSuchImage."""
        found = self._index()
        return self._image(self._find(found, reference), found)

    def list(self) -> list[Image]:
        """All images, newest first."""
        found = self._index()
        images = []
        for manifest in found:
            with contextlib.suppress(NoSuchImage):  # removed since the index was read
                images.append(self._image(manifest, found))
        return sorted(images, key=lambda image: image.created, reverse=True)

    def has(self, digest: str) -> bool:
        """Whether the store has the blob, whole. It may be gone the next moment: what receive() gives stays."""
        return self._blobs.has(digest)

    def open_blob(self, digest: str) -> BinaryIO:
        """A blob as it is stored, or was received. NoSuchImage when no image has it any more."""
        try:
            return self._blobs.open(digest)
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                return self._arrivals.open(digest)
            raise NoSuchImage(f"{digest} was removed meanwhile; pull, load or import the image again") from None

    def read(self, digest: str) -> bytes:
        """A small blob, a document, verified. NoSuchImage; ImageError when it is damaged."""
        try:
            return self._blobs.read(digest)
        except FileNotFoundError:
            raise NoSuchImage(f"{digest} was removed meanwhile; pull, load or import the image again") from None
        except ValueError as error:
            raise ImageError(f"{error}; remove its image and get it again") from None

    # Changing.

    def receive(self, digest: str, size: int) -> AbstractContextManager[Incoming]:
        """The blob `digest` of `size` bytes, to be written from `Incoming.position` on and finished; or `done` already.

        Whatever becomes of other images, it stays until publish() takes it, as long as this object lives. A second
        process that receives the same blob waits here. Raises TimedOut, ValueError for what is not a digest, OSError.
        """
        return self._arrivals.receive(digest, size)

    def received(self, manifest: bytes, media_type: str, names: Sequence[str]) -> Image:
        """The image that publish() would make of this: for unpacking it first. ImageError, NoSuchImage."""
        try:
            parsed = document.parse_manifest(manifest)
            with self.open_blob(parsed.config.digest) as file:
                configuration = document.parse_configuration(file.read())
            return described(digest_of(manifest), Listed(0, tuple(names), media_type), parsed, configuration)
        except ValueError as error:
            raise ImageError(f"the manifest of {', '.join(names)} {error}") from None

    def writer(self) -> Writer:
        """A blob whose digest is not known before its end, for publish()."""
        return self._blobs.writer()

    def publish(
        self, manifest: bytes, media_type: str, names: Sequence[str], *, index: str = "", fresh: Sequence[Writer] = ()
    ) -> Image:
        """Make an image of a manifest whose blobs have been received, are in `fresh`, or belong to other images.

        `names` are references with a tag or a digest; an image that had one loses it. With `index`, the digest of the
        index that the manifest was chosen from, the image also gets `NAME@DIGEST` of the index, and its own.
        ImageError: a document that cannot be read, blobs that were not received, a full disk; nothing has changed then.
        """
        wanted = [parse(name) for name in names]
        digest = digest_of(manifest)
        keys = {name.key for name in wanted}
        keys |= {f"{name.name}@{one}" for name in wanted for one in (index, digest) if index}
        try:
            parsed = document.parse_manifest(manifest)
            for blob in fresh:
                blob.sync()
            with self.locked("lock"):
                return self._publish(Listed(len(manifest), (), media_type), manifest, parsed, keys, fresh)
        except ValueError as error:
            raise ImageError(f"the manifest of {', '.join(names) or digest} {error}") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ImageError(f"no space is left at {self.root}; free some (runtime system prune)") from error
            raise

    def tag(self, source: str, reference: str) -> Image:
        """Give the image `source` the name `reference` too; an image that had it loses it. NoSuchImage, ImageError."""
        name = parse(reference)
        if name.digest:
            raise ImageError(f"{reference!r} has a digest, which is no tag; use NAME[:TAG]")
        with self.locked("lock"):
            found = self._index()
            manifest = self._find(found, source)
            changed = index.renamed(found, manifest, found[manifest], [name.key])
            index.save(self.root, changed)
            return self._image(manifest, changed)

    def remove(self, reference: str, *, in_use: Callable[[], Collection[str]] = tuple) -> Removed:
        """Take a reference from its image; with the last tag, or by its id, remove the image and its blobs.

        `in_use` gives the ids of images that containers are made of, asked for under the lock: whoever makes a
        container records it, and then looks for its image once more (confirm). Snapshots are removed by
        `forget_snapshots`.
        NoSuchImage; ImageInUse for one of those, and for an id whose image has several tags.
        """
        with self.locked("lock"):
            found = self._index()
            manifest = self._find(found, reference)
            try:
                image = self._image(manifest, found)
            except (ImageError, NoSuchImage):  # damaged: what is left of it is its names
                image = Image(manifest, found[manifest].references, (), {}, "", 0)
            gone = names_to_go(image, reference)
            if len(gone) < len(image.references):
                self._save_less(found | {manifest: index.without(found[manifest], gone)})
                return Removed(gone, ())
            if image.id in in_use():
                raise ImageInUse(f"image {image.name} is used by a container; remove that first (runtime ps -a)")
            del found[manifest]
            self._save_less(found)
            needed = self._collect(found)
            layers = zip(image.layers, image.blobs, strict=False)
            deleted = dict.fromkeys(layer for layer, blob in layers if needed is not None and blob.digest not in needed)
            return Removed(gone, (image.id, *deleted))

    def confirm(self, image: Image) -> None:
        """NoSuchImage when the image was removed since; a container that is recorded now keeps it from here on."""
        with self.locked("lock"):
            self._find(self._index(), image.id)

    def prune_incoming(self) -> int:
        """Remove what killed pulls left, unless some process receives an image just now; the bytes that it freed."""
        return self._arrivals.sweep()

    def blob_sizes(self) -> dict[str, int]:
        """Bytes of each blob in the store by its digest: manifests, configurations and layers."""
        return self._blobs.sizes()

    def incoming_size(self) -> int:
        """Bytes of what killed pulls left, or other processes receive."""
        return self._arrivals.size()

    def _publish(
        self, listed: Listed, manifest: bytes, parsed: Manifest, names: Collection[str], fresh: Sequence[Writer]
    ) -> Image:
        """publish() under the lock. ValueError goes on from "the manifest of X "."""
        found = self._index()
        try:
            own = {blob.digest: blob for blob in fresh}
            for blob in dict.fromkeys((parsed.config, *parsed.layers)):
                if blob.digest in own:
                    own[blob.digest].publish()
                elif not self._arrivals.publish(blob.digest) and not self._blobs.has(blob.digest):
                    raise ValueError(f"names {blob.digest[:19]}, which was removed meanwhile; try again")
                if self._blobs.size(blob.digest) != blob.size:
                    raise ValueError(f"says that {blob.digest[:19]} has {blob.size} bytes, which is wrong")
            described("", listed, parsed, self._configuration(parsed.config.digest))
            digest = self._blobs.add(manifest)
            self._blobs.sync()
            changed = index.renamed(found, digest, listed, names)
            index.save(self.root, changed)
            index.mark(self.root)
        except BaseException:
            self._collect(self._index())
            raise
        self._arrivals.settle()
        return self._image(digest, changed)

    def _save_less(self, found: Index) -> None:
        """Replace the index by one that makes room: what is in the way of that on a full disk is given up for it."""
        try:
            index.save(self.root, found)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            reserve.give_up(self._reserve)
            index.save(self.root, found)

    @property
    def _reserve(self) -> str:
        return os.path.join(self.root, "reserve")

    def _index(self) -> Index:
        return index.load(self.root)

    def _collect(self, found: Index) -> set[str] | None:
        """Remove the blobs that no image has, and give those that one has. The lock is held, so none is about to be.

        None, and nothing removed, when an image is damaged: what it needs is not known.
        """
        index.sweep(self.root)
        needed = set(found)
        try:
            for manifest in found:
                parsed = self._manifest(manifest)
                needed.add(parsed.config.digest)
                needed.update(layer.digest for layer in parsed.layers)
        except (ValueError, FileNotFoundError):
            return None
        self._blobs.remove_all_but(needed)
        return needed

    def _image(self, manifest: str, found: Index) -> Image:
        references = found[manifest].references
        try:
            parsed = self._manifest(manifest)
            configuration = self._configuration(parsed.config.digest)
        except FileNotFoundError:
            raise NoSuchImage(f"image {', '.join(references) or manifest} was removed meanwhile") from None
        except ValueError as error:
            name = references[0] if references else manifest[7:19]
            raise ImageError(f"image {name}: {error}; remove it (runtime rmi {name}) and get it again") from None
        return described(manifest, found[manifest], parsed, configuration)

    def _id(self, manifest: str) -> str:
        """The image's id; of a damaged one the manifest's digest, so that there is something to remove it by."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            return self._manifest(manifest).config.digest
        return manifest

    def _manifest(self, digest: str) -> Manifest:
        """FileNotFoundError; ValueError when it is damaged."""
        return document.parse_manifest(self._blobs.read(digest))

    def _configuration(self, digest: str) -> Configuration:
        """FileNotFoundError; ValueError when it is damaged."""
        return document.parse_configuration(self._blobs.read(digest))

    def _find(self, found: Index, text: str) -> str:
        """The manifest of the image that `text` names, or is the digest of."""
        if text in found:
            return text
        with contextlib.suppress(ImageError):
            if (manifest := index.holder(found, parse(text).key)) is not None:
                return manifest
        if text in found:
            return text
        prefix = text.removeprefix("sha256:")
        if len(prefix) >= _ID_PREFIX:
            hits: dict[str, str] = {}  # two manifests may describe one image
            for manifest in found:
                if (image_id := self._id(manifest))[7:].startswith(prefix):
                    hits.setdefault(image_id, manifest)
            if len(hits) == 1:
                return next(iter(hits.values()))
            if hits:
                raise NoSuchImage(f"{text} is the beginning of {len(hits)} image ids; write more of it")
        raise NoSuchImage(f"there is no image {text!r}; see 'runtime images', and 'runtime pull' or 'load' to get one")
