"""The JSON documents of an image: configuration, manifest, descriptors (OCI image-spec config.md, manifest.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def encode(document: Mapping[str, Any]) -> bytes:
    """Compact, the same bytes for the same document; ASCII, so surrogates (names that are no UTF-8) are escaped."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def decode(data: bytes) -> dict[str, Any]:
    """ValueError when `data` is no JSON object."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def configuration(diff_ids: list[str], config: Mapping[str, Any], *, created: str, comment: str) -> dict[str, Any]:
    """An image configuration; `config` is the part that `run` uses (Cmd, Env, …), `created` RFC 3339."""
    machine = os.uname().machine
    return {
        "created": created,
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": created, "comment": comment}],
    }


def manifest(config: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
