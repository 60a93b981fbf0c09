"""The image store: an OCI image layout, shared by all drivers of one root and by any number of processes.

    <root>/                 0700: layers hold set-id files (CVE-2021-41091)
        oci-layout  index.json  blobs/sha256/…
        lock                flock: held to change the index or the names of blobs
        unpack.lock         flock: held to unpack or to forget snapshots (runtime.images.unpack)
        unpack/             mount point of the layer that is being unpacked

Importing: the layer is written without a name and checked │ lock: blobs get their names, and the index changes.
What a process leaves that is killed under the lock, blobs that no image has, is removed when the store is next opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from drivers.archive.errors import ArchiveError
from drivers.archive.limits import DEFAULT, Limits
from runtime.errors import ImageError, ImageInUse, NoSuchImage
from runtime.images import document, index
from runtime.images.blobs import Blobs, Writer
from runtime.images.index import Index, Listed
from runtime.images.reference import parse

_ID_PREFIX = 4  # characters of an id that are enough to mean it, when it is the only one


@dataclass(frozen=True)
class Image:
    """What the store knows of an image.

    `id` is the digest of its configuration, `layers` are diff ids from the bottom up, `config` is the configuration's
    part for `run` (Cmd, Entrypoint, Env, WorkingDir, User …), `created` RFC 3339, `size` the bytes of its archives.
    """

    id: str
    references: tuple[str, ...]
    layers: tuple[str, ...]
    config: dict[str, Any]
    created: str
    size: int

    @property
    def name(self) -> str:
        """For a sentence: a reference, or the beginning of the id."""
        return self.references[0] if self.references else self.id[7:19]


class Removed(NamedTuple):
    """What remove() did: references taken away, ids of images and layers deleted."""

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]


class ImageStore:
    """The store at `root`, made if missing. Thread-safe; any number of objects and processes may share a root."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        os.makedirs(self.root, 0o700, exist_ok=True)
        os.chmod(self.root, 0o700)  # makedirs obeys the umask, and the directory may have been there
        self._blobs = Blobs(self.root)
        # Who holds the lock leaves nothing, or else the next one to open the store collects. That the index is
        # damaged is said to who needs it.
        with contextlib.suppress(BlockingIOError, ImageError), self.locked("lock", wait=False):
            self._collect(self._index())

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock file `name`. BlockingIOError when it is held by another and we do not `wait`."""
        fd = os.open(os.path.join(self.root, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(fd)

    # Reading. Without the lock: an index is replaced as a whole, and blobs never change.

    def get(self, reference: str) -> Image:
        """The image by a reference, by its id, or by the beginning of its id. NoSuchImage."""
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

    def open_layer(self, diff_id: str) -> BinaryIO:
        """The uncompressed archive of a layer. NoSuchImage when no image has it any more."""
        try:
            return self._blobs.open(diff_id)
        except FileNotFoundError:
            raise NoSuchImage(f"layer {diff_id} was removed meanwhile; import the image again") from None

    # Changing.

    def import_rootfs(
        self, tar_path: str, reference: str, *, config: Mapping[str, Any] | None = None, limits: Limits = DEFAULT
    ) -> Image:
        """Make an image of one layer from the root file system archive at `tar_path`, and give it the `reference`.

        The archive may be compressed. All of it is checked before it becomes an image; `config` is the image's part
        for `run`, as `changes.parse` gives it. An image that had the reference keeps its other ones, or none.
        ImageError names the archive and what is wrong with it.
        """
        from runtime.images.layer import take_in

        name = str(parse(reference))
        try:
            with self._blobs.writer() as layer:
                take_in(tar_path, layer.write, limits)
                layer.sync()
                return self._publish(layer, name, config or {}, comment=f"imported from {os.path.basename(tar_path)}")
        except ArchiveError as error:
            raise ImageError(f"cannot import {tar_path}: {error}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ImageError(f"cannot import {tar_path}: no space is left at {self.root}; free some") from error
            raise ImageError(f"cannot import {tar_path}: {error.strerror}") from error

    def remove(self, reference: str, *, in_use: Collection[str] = ()) -> Removed:
        """Take a reference from its image; with the last of them, or by its id, remove the image and its blobs.

        `in_use` are the ids of images that containers are made of. Snapshots are removed by `forget_snapshots`.
        NoSuchImage; ImageInUse for one of those, and for an id whose image has several references.
        """
        with self.locked("lock"):
            found = self._index()
            manifest = self._find(found, reference)
            try:
                image = self._image(manifest, found)
            except (ImageError, NoSuchImage):  # damaged: what is left of it is its names
                image = Image(manifest, found[manifest].references, (), {}, "", 0)
            name = _named(found, reference)
            if name is not None and len(image.references) > 1:
                index.save(self.root, found | {manifest: _without(found[manifest], name)})
                return Removed((name,), ())
            if image.id in in_use:
                raise ImageInUse(f"image {image.name} is used by a container; remove that first (runtime ps -a)")
            if name is None and len(image.references) > 1:
                raise ImageInUse(f"image {reference} has several names, remove each: {', '.join(image.references)}")
            del found[manifest]
            index.save(self.root, found)
            needed = self._collect(found)
            gone = dict.fromkeys(layer for layer in image.layers if needed is not None and layer not in needed)
            return Removed(image.references, (image.id, *gone))

    def _publish(self, layer: Writer, name: str, config: Mapping[str, Any], *, comment: str) -> Image:
        now = time.time_ns() // 1000
        created = time.strftime(f"%Y-%m-%dT%H:%M:%S.{now % 10**6:06}Z", time.gmtime(now // 10**6))
        with self.locked("lock"):
            found = self._index()
            try:
                diff_id = layer.publish()
                described = document.encode(document.configuration([diff_id], config, created=created, comment=comment))
                manifest = document.encode(document.manifest(
                    document.descriptor(document.CONFIG, self._blobs.add(described), len(described)),
                    [document.descriptor(document.LAYER, diff_id, layer.size)],
                ))  # fmt: skip
                digest = self._blobs.add(manifest)
                self._blobs.sync()
                changed = {other: _without(listed, name) for other, listed in found.items()}
                same = changed.get(digest, Listed(len(manifest), ()))
                changed[digest] = same._replace(references=(*same.references, name))
                index.mark(self.root)
                index.save(self.root, changed)
            except BaseException:
                self._collect(self._index())
                raise
            return self._image(digest, changed)

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
                content = self._document(manifest)
                needed.add(content["config"]["digest"])
                needed.update(layer["digest"] for layer in content["layers"])
        except (ValueError, FileNotFoundError):
            return None
        self._blobs.remove_all_but(needed)
        return needed

    def _image(self, manifest: str, found: Index) -> Image:
        references = found[manifest].references
        try:
            content = self._document(manifest)
            image_id = content["config"]["digest"]
            configuration = self._document(image_id)
        except FileNotFoundError:
            raise NoSuchImage(f"image {', '.join(references) or manifest} was removed meanwhile") from None
        except ValueError as error:
            name = references[0] if references else manifest[7:19]
            raise ImageError(f"image {name}: {error}; remove it (runtime rmi {name}) and import it again") from None
        return Image(
            id=image_id,
            references=references,
            layers=tuple(configuration["rootfs"]["diff_ids"]),
            config=configuration.get("config") or {},
            created=configuration.get("created", ""),
            size=sum(layer["size"] for layer in content["layers"]),
        )

    def _id(self, manifest: str) -> str:
        """The image's id; of a damaged one the manifest's digest, so that there is something to remove it by."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            return str(self._document(manifest)["config"]["digest"])
        return manifest

    def _document(self, digest: str) -> dict[str, Any]:
        """FileNotFoundError; ValueError when it is damaged."""
        return document.decode(self._blobs.read(digest))

    def _find(self, found: Index, text: str) -> str:
        """The manifest of the image that `text` names."""
        name = _named(found, text)
        for manifest, listed in found.items():
            if name is not None and name in listed.references:
                return manifest
        prefix = text.removeprefix("sha256:")
        if len(prefix) >= _ID_PREFIX:
            hits = [manifest for manifest in found if self._id(manifest)[7:].startswith(prefix)]
            if len(hits) == 1:
                return hits[0]
            if hits:
                raise NoSuchImage(f"{text} is the beginning of {len(hits)} image ids; write more of it")
        raise NoSuchImage(f"there is no image {text!r}; see 'runtime images', and 'runtime import' to make one")


def _named(found: Index, text: str) -> str | None:
    """The reference that `text` is, if an image has it."""
    try:
        name = str(parse(text))
    except ImageError:
        return None
    return name if any(name in listed.references for listed in found.values()) else None


def _without(listed: Listed, name: str) -> Listed:
    return listed._replace(references=tuple(reference for reference in listed.references if reference != name))
