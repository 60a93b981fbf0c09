"""The JSON documents of an image: index, manifest, configuration (OCI image-spec, *.md of these names).

Docker's schema 2 has the same fields under other media types, and is kept as it is. What is wrong with a document is a
ValueError whose text goes on from "image X: " or "the manifest of X ".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from runtime.images.platforms import Platform, compatible, host, runs

_OCI = "application/vnd.oci.image"
_DOCKER = "application/vnd.docker"

INDEX = f"{_OCI}.index.v1+json"
MANIFEST = f"{_OCI}.manifest.v1+json"
CONFIG = f"{_OCI}.config.v1+json"
LAYER = f"{_OCI}.layer.v1.tar"
LAYER_GZIP = f"{LAYER}+gzip"
LAYER_ZSTD = f"{LAYER}+zstd"
DOCKER_INDEX = f"{_DOCKER}.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = f"{_DOCKER}.distribution.manifest.v2+json"
DOCKER_CONFIG = f"{_DOCKER}.container.image.v1+json"
DOCKER_LAYER = f"{_DOCKER}.image.rootfs.diff.tar"

INDEXES = (INDEX, DOCKER_INDEX)
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)
# Registries of 2016 gave docker's configurations other types, and docker takes these since then (moby distribution/
# registry.go, ImageTypes). A type that is missing is what the manifest is about.
_CONFIGS = (CONFIG, DOCKER_CONFIG, "application/octet-stream", "application/json", "text/html", "")


def _packed(base: str, *packings: str) -> frozenset[str]:
    return frozenset((base, *(base + packed for packed in packings)))


# Layers that are said to be had elsewhere only, of Windows mostly; OCI has given them up.
_FOREIGN_LAYERS = _packed(f"{_OCI}.layer.nondistributable.v1.tar", "+gzip", "+zstd") | _packed(
    f"{_DOCKER}.image.rootfs.foreign.diff.tar", ".gzip", ".zstd"
)
_LAYERS = _FOREIGN_LAYERS | _packed(LAYER, "+gzip", "+zstd") | _packed(DOCKER_LAYER, ".gzip", ".zstd", "+zstd") | {""}

MAX_DOCUMENT = 4 << 20  # bytes of a manifest, an index or a configuration, as registries and engines limit them
MAX_LAYERS = 500  # as many as the drivers are tested with
_MAX_BLOB = 32 << 30  # bytes of a layer as it is stored: what an archive may be unpacked (drivers.archive.limits)
_MAX_MANIFESTS = 1000  # of an index

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Descriptor(NamedTuple):
    """What a document says of a blob: its media type, its digest ("sha256:HEX"), its size in bytes."""

    media_type: str
    digest: str
    size: int

    def encoded(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


class Listed(NamedTuple):
    """An entry of an index; `platform` is None where it names none."""

    descriptor: Descriptor
    platform: Platform | None
    annotations: Mapping[str, str]


class Manifest(NamedTuple):
    """`layers` from the bottom up."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class Configuration(NamedTuple):
    """An image configuration: `diff_ids` from the bottom up, `config` the part for `run` (Cmd, Env, …), `created`
    RFC 3339 or "", `history` from the first step on, `document` all of it."""

    platform: Platform
    diff_ids: tuple[str, ...]
    config: dict[str, Any]
    created: str
    history: tuple[dict[str, Any], ...]
    document: dict[str, Any]


def encode(document: Any) -> bytes:
    """Compact, the same bytes for the same document; ASCII, so surrogates (names that are not UTF-8) are escaped."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def decode(data: bytes) -> dict[str, Any]:
    """ValueError when `data` is not a JSON object, or over the limit."""
    document = decode_any(data)
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    return document


def decode_any(data: bytes) -> Any:
    """Whatever JSON `data` is. ValueError."""
    if len(data) > MAX_DOCUMENT:
        raise ValueError(f"is over the {MAX_DOCUMENT} bytes that a document may have")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # the latter for ten thousand brackets
        raise ValueError("is no JSON") from None


def media_type(data: bytes, said: str = "") -> str:
    """The media type of the manifest or index `data`: its own, or else what who gave it `said`.

    ValueError when it could be taken for both (CVE-2021-41190), and for what is neither.
    """
    content = decode(data)
    if content.get("schemaVersion") == 1:
        raise ValueError("is of docker's schema 1, which engines have given up; push the image again")
    is_index, is_manifest = "manifests" in content, "config" in content or "layers" in content
    own = str(content.get("mediaType") or said.partition(";")[0].strip() or (INDEX if is_index else MANIFEST))
    if is_index == is_manifest or own not in (INDEXES if is_index else MANIFESTS):
        raise ValueError(f"is neither an image's manifest nor an index of them (it says {own[:100]!r})")
    return own


def is_artifact(data: bytes) -> bool:
    """Whether a manifest is of something else than an image: a signature, a chart. ValueError."""
    return _descriptor(decode(data).get("config"), limit=MAX_DOCUMENT).media_type not in _CONFIGS


def parse_manifest(data: bytes) -> Manifest:
    """ValueError; also for what cannot be an image of this runtime: an artifact, layers of unknown types, too many."""
    content = decode(data)
    config = _descriptor(content.get("config"), limit=MAX_DOCUMENT)
    if config.media_type not in _CONFIGS:
        raise ValueError(f"is no image's: its configuration is of type {config.media_type[:100]!r}")
    layers = tuple(_descriptor(layer) for layer in _list(content, "layers", MAX_LAYERS))
    for layer in layers:
        if layer.media_type not in _LAYERS:
            raise ValueError(f"has a layer of type {layer.media_type[:100]!r}, which this runtime cannot unpack")
    return Manifest(config, layers)


def is_foreign(layer: Descriptor) -> bool:
    """Whether it is a layer that is not to be given to others, and that a registry may lack."""
    return layer.media_type in _FOREIGN_LAYERS


def parse_index(data: bytes) -> tuple[Listed, ...]:
    """ValueError."""
    found = []
    for entry in _list(decode(data), "manifests", _MAX_MANIFESTS):
        descriptor = _descriptor(entry, limit=MAX_DOCUMENT)
        platform = _object(entry, "platform")
        annotations = _object(entry, "annotations")
        found.append(Listed(
            descriptor,
            _platform(platform) if platform else None,
            {str(key): value for key, value in annotations.items() if isinstance(value, str)},
        ))  # fmt: skip
    return tuple(found)


def parse_configuration(data: bytes) -> Configuration:
    """ValueError."""
    content = decode(data)
    diff_ids = _list(_object(content, "rootfs"), "diff_ids", MAX_LAYERS)
    if not all(isinstance(diff_id, str) and _DIGEST.fullmatch(diff_id) for diff_id in diff_ids):
        raise ValueError("has a configuration whose diff_ids are no sha256 digests")
    created = content.get("created")
    config = _object(content, "config")
    for key, fits in _CONFIG.items():
        if (value := config.get(key)) is not None and not fits(value):
            raise ValueError(f"has a configuration whose {key} is not what it should be: {str(value)[:60]!r}")
    return Configuration(
        platform=_platform(content),
        diff_ids=tuple(diff_ids),
        config=config,
        created=created if isinstance(created, str) else "",
        history=tuple(step for step in _list(content, "history", None) if isinstance(step, dict)),
        document=content,
    )


def _is_text(value: Any) -> bool:
    """What can be an argument of a program: names that are not UTF-8 come as surrogates, and others cannot be meant."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


def _is_labels(value: Any) -> bool:
    return _is_object(value) and all(map(_is_text, value.values()))


# What of `config` is used, and its types (config.md).
_CONFIG: dict[str, Callable[[Any], bool]] = {
    "Cmd": _is_texts, "Entrypoint": _is_texts, "Env": _is_texts, "User": _is_text, "WorkingDir": _is_text,
    "StopSignal": _is_text, "Labels": _is_labels, "ExposedPorts": _is_object, "Volumes": _is_object,
}  # fmt: skip


def choose_platform(index: Sequence[Listed], wanted: Platform | None = None) -> Descriptor:
    """The best entry for the `wanted` platform, by default this machine's; else the first that names none.

    ValueError lists what there is. What is chosen may be an index again.
    """
    wanted = wanted or host()
    usable = [entry for entry in index if entry.descriptor.media_type in (*MANIFESTS, *INDEXES, "")]
    for platform in compatible(wanted):
        for entry in usable:
            if entry.platform is not None and runs(entry.platform, platform):
                return entry.descriptor
    for entry in usable:
        if entry.platform is None:
            return entry.descriptor
    offered = sorted({str(entry.platform) for entry in usable if entry.platform and entry.platform.os != "unknown"})
    raise ValueError(f"has no image for {wanted}; it has {', '.join(offered)[:300] or 'none at all'}")


def configuration(diff_ids: list[str], config: Mapping[str, Any], *, created: str, comment: str) -> dict[str, Any]:
    """An image configuration; `config` is the part that `run` uses (Cmd, Env, …), `created` RFC 3339."""
    own = host()
    return {
        "created": created,
        "architecture": own.architecture,
        **({"variant": own.variant} if own.variant else {}),
        "os": own.os,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": created, "comment": comment}],
    }


def manifest(config: Descriptor, layers: Sequence[Descriptor], media_type: str = MANIFEST) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.encoded(),
        "layers": [layer.encoded() for layer in layers],
    }


def _descriptor(content: Any, limit: int = _MAX_BLOB) -> Descriptor:
    if not isinstance(content, dict):
        raise ValueError("has a descriptor that is no JSON object")
    media, digest, size = (content.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        # Never used as a path unseen (CVE-2014-9358).
        raise ValueError(f"names a blob by {str(digest)[:100]!r}, which is no sha256 digest")
    if type(size) is not int or not 0 <= size <= limit:
        raise ValueError(f"says that {digest[:19]} has {str(size)[:40]} bytes; {limit} are allowed")
    return Descriptor(media if isinstance(media, str) else "", digest, size)


def _platform(content: Mapping[str, Any]) -> Platform:
    """What is no word of letters is none of a platform's, and would be printed; a feature stays one that is needed."""
    values = (content.get(key) for key in ("os", "architecture", "variant"))
    system, architecture, variant = (v if isinstance(v, str) and v.isprintable() else "" for v in values)
    features = content.get("os.features")
    needed = map(str, features) if isinstance(features, list) else ()
    return Platform(system, architecture, variant, tuple(v if v.isprintable() else "?" for v in needed))


def _object(content: Any, key: str) -> dict[str, Any]:
    """Missing and null are an empty one: Go's encoders write both."""
    value = (content.get(key) if isinstance(content, dict) else None) or {}
    if not isinstance(value, dict):
        raise ValueError(f"has {key!r} that is no JSON object")
    return value


def _list(content: Mapping[str, Any], key: str, limit: int | None) -> list[Any]:
    value = content.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"has {key!r} that is no JSON array")
    if limit is not None and len(value) > limit:
        raise ValueError(f"has {len(value)} {key}, {limit} are allowed")
    return value
