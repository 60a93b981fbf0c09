"""`commit`: what a container has changed becomes a layer, and that on top of its image's a new image.

The configuration is the image's with the container's own command, environment, user and directory, as docker has it,
and the changes that were asked for. Manifest and configuration are of the form that the image's are, OCI's or docker's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from drivers import diff
from drivers.api import Snapshotter
from drivers.archive.errors import ArchiveError
from runtime.engine.containers import trees
from runtime.engine.containers.container import Config, Container
from runtime.engine.containers.pause import paused
from runtime.engine.installation import Installation
from runtime.errors import ImageError
from runtime.images import changes, document
from runtime.images.blobs import Writer
from runtime.images.document import Descriptor
from runtime.images.image import Image
from runtime.images.reference import parse

_EMPTY = 1024  # bytes of an archive without an entry

# What the runtime gives a container whatever its image says (engine/containers/spec.py).
_GIVEN = ("HOSTNAME", "TERM")


class CommitRequest(NamedTuple):
    """`reference` is "" for an image without a name; `changes` are instructions of a Dockerfile."""

    reference: str = ""
    message: str = ""
    author: str = ""
    changes: tuple[str, ...] = ()
    pause: bool = True


def commit(installation: Installation, container: Container, request: CommitRequest) -> Image:
    """Make the image. Raises RuntimeFault, DriverError, OSError; there is no new image then, and no blob."""
    config = container.config
    names = [_name(request.reference)] if request.reference else []
    images = installation.images
    base = images.get(config.image_id)
    changed = changes.parse(request.changes, _of_container(base.config, config))
    with images.writer() as layer, images.writer() as configuration:
        size = _write_layer(installation.drivers.get(config.driver), container, layer, pause=request.pause)
        layers = list(base.blobs)
        is_docker = base.media_type == document.DOCKER_MANIFEST
        if size > _EMPTY:
            layers.append(Descriptor(document.DOCKER_LAYER if is_docker else document.LAYER, layer.digest, layer.size))
        before = document.decode(images.read(base.id))
        step = _step(config, request, empty=size == _EMPTY)
        configuration.write(document.encode(_configuration(before, changed, step, layer.digest)))
        manifest = document.encode(document.manifest(
            Descriptor(
                document.DOCKER_CONFIG if is_docker else document.CONFIG, configuration.digest, configuration.size
            ),
            layers,
            base.media_type,
        ))  # fmt: skip
        fresh = [configuration, *([layer] if size > _EMPTY else [])]
        return images.publish(manifest, base.media_type, names, fresh=fresh)


def _name(reference: str) -> str:
    name = parse(reference)
    if name.digest:
        raise ImageError(f"{reference!r} has a digest, which only a registry gives; use NAME[:TAG]")
    return name.key


def _write_layer(driver: Snapshotter, container: Container, layer: Writer, *, pause: bool) -> int:
    with ExitStack() as held:
        if pause:
            held.enter_context(paused(container))
        live = held.enter_context(trees.live(container))
        points = trees.mount_points(container)
        try:
            return diff.write_diff(driver, container.id, layer.write, mount_points=points, live=live)
        except ArchiveError as error:
            raise ImageError(f"cannot commit {container.config.name}: {error}") from error


def _of_container(image: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The part for `run`: the image's, with what the container was started with."""
    process = config.spec["process"]
    own = {entry.partition("=")[0] for entry in image.get("Env") or ()}
    entrypoint = list(image.get("Entrypoint") or ())
    command = list(config.command)
    if command[: len(entrypoint)] != entrypoint:
        entrypoint = []
    merged = {key: value for key, value in image.items() if value is not None and key != "Entrypoint"}
    if entrypoint:
        merged["Entrypoint"] = entrypoint
    merged["Cmd"] = command[len(entrypoint) :]
    merged["Env"] = [
        entry for entry in process["env"] if (name := entry.partition("=")[0]) in own or name not in _GIVEN
    ]
    merged["WorkingDir"] = process["cwd"]
    if config.user:
        merged["User"] = config.user
    return merged


def _step(config: Config, request: CommitRequest, *, empty: bool) -> dict[str, Any]:
    """The image's line in its history."""
    now = time.time_ns() // 1000
    created = time.strftime(f"%Y-%m-%dT%H:%M:%S.{now % 10**6:06}Z", time.gmtime(now // 10**6))
    step: dict[str, Any] = {"created": created, "created_by": " ".join(config.command)}
    if request.author:
        step["author"] = request.author
    if request.message:
        step["comment"] = request.message
    if empty:
        step["empty_layer"] = True
    return step


def _configuration(
    before: Mapping[str, Any], changed: dict[str, Any], step: dict[str, Any], diff_id: str
) -> dict[str, Any]:
    rootfs = before.get("rootfs") or {}  # of an image without layers, Go's encoders write null
    added = [] if step.get("empty_layer") else [diff_id]
    after = {key: before[key] for key in ("architecture", "os", "variant", "os.version") if key in before}
    after |= {
        "created": step["created"],
        "config": changed,
        "rootfs": {"type": "layers", **rootfs, "diff_ids": [*(rootfs.get("diff_ids") or ()), *added]},
        "history": [*(before.get("history") or ()), step],
    }
    if "author" in step:
        after["author"] = step["author"]
    return after
