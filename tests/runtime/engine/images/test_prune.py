"""Pruning images."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.engine.images.prune import prune
from runtime.engine.installation import Installation
from runtime.engine.paths import Paths
from runtime.images import document
from runtime.images.blobs import digest_of
from tests.runtime.images.conftest import LAYERS, Made, image_of, receive


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    return Paths.of(str(tmp_path / "root"), str(tmp_path / "state"))


@pytest.fixture
def opened(paths: Paths) -> Iterator[Installation]:
    with Installation(paths) as installation:
        yield installation


def repacked(made: Made) -> Made:
    """The same image, its layers packed anew: another manifest of the same configuration."""
    manifest = document.decode(made.manifest)
    blobs = {made.id: made.blobs[made.id]}
    for layer in manifest["layers"]:
        blob = gzip.compress(gzip.decompress(made.blobs[layer["digest"]]), 9, mtime=7)
        layer |= {"digest": digest_of(blob), "size": len(blob)}
        blobs[digest_of(blob)] = blob
    return Made(document.encode(manifest), blobs, tuple(layer["digest"] for layer in manifest["layers"]), made.id)


@pytest.mark.parametrize("order", ["tagged first", "dangling first"])
def test_pruning_takes_the_image_and_not_another_with_its_id(opened: Installation, order: str) -> None:
    """Two manifests have one configuration, whose digest is the id of both."""
    store = opened.images
    tagged, dangling = image_of(LAYERS), repacked(image_of(LAYERS))
    names = {tagged.manifest: ["keep"], dangling.manifest: []}
    for made in (tagged, dangling) if order == "tagged first" else (dangling, tagged):
        receive(store, made)
        store.publish(made.manifest, document.MANIFEST, names[made.manifest])
    pruned = prune(opened)
    assert [(image.manifest, image.tags) for image in store.list()] == [(digest_of(tagged.manifest), ("keep:latest",))]
    assert tagged.id in [deleted for removed in pruned.removed for deleted in removed.deleted]
    assert store.get(tagged.id).tags == ("keep:latest",)
