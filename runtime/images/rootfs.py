"""An image made of the archive of a root file system, which has one layer."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from typing import Any

from drivers.archive.errors import ArchiveError
from drivers.archive.limits import DEFAULT, Limits
from runtime.errors import ImageError
from runtime.images import document
from runtime.images.document import Descriptor
from runtime.images.image import Image
from runtime.images.layer import take_in
from runtime.images.reference import parse
from runtime.images.store import ImageStore


def import_rootfs(
    store: ImageStore, tar_path: str, reference: str, *, config: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT,
) -> Image:  # fmt: skip
    """Make an image of one layer from the root file system archive at `tar_path`, and give it the `reference`.

    The archive may be compressed. All of it is checked before it becomes an image; `config` is the image's part
    for `run`, as `changes.parse` gives it. An image that had the reference keeps its other ones, or none.
    ImageError names the archive and what is wrong with it.
    """
    name = parse(reference)
    if name.digest:
        raise ImageError(f"{reference!r} has a digest, which only a registry gives; use NAME[:TAG]")
    now = time.time_ns() // 1000
    created = time.strftime(f"%Y-%m-%dT%H:%M:%S.{now % 10**6:06}Z", time.gmtime(now // 10**6))
    comment = f"imported from {os.path.basename(tar_path)}"
    try:
        with store.writer() as layer, store.writer() as configuration:
            take_in(tar_path, layer.write, limits)
            configuration.write(document.encode(
                document.configuration([layer.digest], config or {}, created=created, comment=comment)
            ))  # fmt: skip
            manifest = document.encode(document.manifest(
                Descriptor(document.CONFIG, configuration.digest, configuration.size),
                [Descriptor(document.LAYER, layer.digest, layer.size)],
            ))  # fmt: skip
            return store.publish(manifest, document.MANIFEST, [name.key], fresh=[layer, configuration])
    except (ArchiveError, ImageError) as error:
        raise ImageError(f"cannot import {tar_path}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(f"cannot import {tar_path}: no space is left at {store.root}; free some") from error
        raise ImageError(f"cannot import {tar_path}: {error.strerror}") from error
