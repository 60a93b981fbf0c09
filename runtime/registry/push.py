"""An image to a registry: blobs that it lacks, then the manifest, byte for byte as the store has it.

    per blob, three at a time:   there already?  │ in another of the registry's repositories?  mount │ upload
    manifest                     which makes it an image: the tag changes with this step only
"""

from __future__ import annotations

import functools

from runtime.errors import ImageError
from runtime.events import Listener, Message, Progress, unheard
from runtime.images import document
from runtime.images.document import Descriptor, Manifest
from runtime.images.reference import Reference, parse, short
from runtime.images.store import ImageStore
from runtime.registry.access import Access
from runtime.registry.client import Client
from runtime.registry.failures import Answered
from runtime.registry.upload import mount, upload
from runtime.registry.workers import together

_UNKNOWN = ("BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN")


def push(store: ImageStore, access: Access, reference: Reference, tell: Listener) -> str:
    """The digest of the manifest that the registry has now as `reference`. `tell` hears how it goes.

    Raises NoSuchImage, ImageError, RegistryError, OSError; the tag is what it was then.
    """
    if reference.digest:
        raise ImageError(f"cannot push {reference}: a digest is no name to push to; use NAME[:TAG]")
    image = store.get(str(reference))
    manifest = store.read(image.manifest)
    parsed = document.parse_manifest(manifest)
    sources = _sources(store, reference, parsed)
    # Diff ids are what docker shows of layers that are pushed; the configuration has no line.
    shown = dict(zip((blob.digest for blob in parsed.layers), (short(layer) for layer in image.layers), strict=True))
    own = access.registries.endpoints(reference.registry)[-1]
    repositories = sorted({source for each in sources.values() for source in each})
    tell(Message(f"The push refers to repository [{reference.registry}/{reference.repository}]"))
    with access.client(own, reference, "push", repositories) as client:
        for name in shown.values():
            tell(Progress(name, "Preparing"))
        pusher = _Pusher(store, client, tell, sources, shown)
        pusher.blobs(parsed, believe=True)
        try:
            digest = client.put_manifest(reference.tag, manifest, image.media_type)
        except Answered as error:
            if not set(error.codes) & set(_UNKNOWN):
                raise
            # It said that it had a blob, or took one over, and has it not: all of them once more, unasked.
            pusher.blobs(parsed, believe=False)
            digest = client.put_manifest(reference.tag, manifest, image.media_type)
    tell(Message(f"{reference.tag}: digest: {digest} size: {len(manifest)}"))
    return digest


class _Pusher:
    def __init__(
        self, store: ImageStore, client: Client, tell: Listener, sources: dict[str, list[str]],
        shown: dict[str, str],
    ) -> None:  # fmt: skip
        self._store, self._client, self._tell, self._sources, self._shown = store, client, tell, sources, shown

    def blobs(self, parsed: Manifest, *, believe: bool) -> None:
        """All of the image's but foreign layers; without `believe`, whatever the registry says that it has."""
        foreign = {layer for layer in parsed.layers if document.is_foreign(layer)}
        for layer in foreign:  # media-types.md: "SHOULD NOT upload"
            self._tell(Progress(self._shown[layer.digest], "Skipped foreign layer"))
        wanted = [blob for blob in dict.fromkeys((*parsed.layers, parsed.config)) if blob not in foreign]
        jobs = [functools.partial(self._blob, blob, believe) for blob in wanted]
        together(jobs, self._client.abort)

    def _blob(self, blob: Descriptor, believe: bool) -> None:
        name = self._shown.get(blob.digest)
        tell = self._tell if name else unheard
        name = name or ""
        if believe:
            if self._client.has_blob(blob.digest):
                tell(Progress(name, "Layer already exists"))
                return
            for source in self._sources.get(blob.digest, ()):
                if mount(self._client, blob.digest, source):
                    tell(Progress(name, f"Mounted from {source}"))
                    return

        def sent(position: int) -> None:
            if blob.size:
                tell(Progress(name, "Pushing", position, blob.size))

        upload(self._client, blob, lambda: self._store.open_blob(blob.digest), sent)
        tell(Progress(name, "Pushed"))


def _sources(store: ImageStore, reference: Reference, parsed: Manifest) -> dict[str, list[str]]:
    """By blob, the other repositories of the same registry that have it, as far as the names of our images tell."""
    wanted = {blob.digest for blob in (*parsed.layers, parsed.config)}
    found: dict[str, list[str]] = {}
    for image in store.list():
        for name in image.references:
            other = parse(name)
            if other.registry != reference.registry or other.repository == reference.repository:
                continue
            for digest in wanted & {image.id, *(blob.digest for blob in image.blobs)}:
                if other.repository not in found.setdefault(digest, []):
                    found[digest].append(other.repository)
    return found
