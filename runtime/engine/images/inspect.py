"""What is known of an image, under the names that docker's API has for it (GET /images/NAME/json). What this runtime
does not have is left out."""

from __future__ import annotations

from typing import Any

from runtime.images import document
from runtime.images.image import Image
from runtime.images.store import ImageStore

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


def inspect(store: ImageStore, found: Image) -> dict[str, Any]:
    """NoSuchImage when it is removed meanwhile."""
    configuration = document.parse_configuration(store.read(found.id))
    told = configuration.history[-1] if configuration.history else {}
    return {
        "Id": found.id,
        "RepoTags": list(found.tags),
        "RepoDigests": list(found.digests),
        "Parent": "",
        "Comment": configuration.document.get("comment") or told.get("comment") or "",
        "Created": found.created or _NEVER,
        "Author": configuration.document.get("author") or "",
        "Config": found.config,
        "Architecture": configuration.platform.architecture,
        "Variant": configuration.platform.variant,
        "Os": configuration.platform.os,
        "OsVersion": configuration.document.get("os.version") or "",
        "DockerVersion": configuration.document.get("docker_version") or "",
        "Size": found.size,
        "RootFS": {"Type": "layers", "Layers": list(found.layers)},
        "Descriptor": document.Descriptor(found.media_type, found.manifest, len(store.read(found.manifest))).encoded(),
    }
