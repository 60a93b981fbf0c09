"""What registries have under a name, as tools have written it there: which of it is the image, and which is none."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from runtime.errors import RegistryError
from runtime.images import document
from runtime.images.blobs import digest_of
from runtime.images.document import Descriptor
from runtime.images.platforms import host, parse_platform
from tests.runtime.registry.conftest import Puller, Registry
from tests.runtime.registry.lying import Honest, Made, Server, made

Lying = Callable[..., Server]
FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.diff.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar",
)  # fmt: skip


def index_of(*platforms: dict[str, object]) -> tuple[bytes, list[Made]]:
    """An index with an image for each, and these images; no two are the same."""
    images = [made(annotations={"n": str(number)}) for number in range(len(platforms))]
    entries = [
        Descriptor(document.MANIFEST, image.digest, len(image.manifest)).encoded() | {"platform": platform}
        for image, platform in zip(images, platforms, strict=True)
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": document.INDEX, "manifests": entries}).encode(), images


@pytest.mark.parametrize("asked", ["linux/arm64", "linux/aarch64", "arm64", "linux/arm64/v8"])
@pytest.mark.parametrize("variant", [{}, {"variant": "v8"}], ids=["plain", "v8"])
def test_a_platform_under_its_other_names(puller: Puller, lying: Lying, asked: str, variant: dict[str, str]) -> None:
    arm: dict[str, object] = {"os": "linux", "architecture": "arm", "variant": "v7"}
    unknown: dict[str, object] = {"os": "unknown", "architecture": "unknown"}
    index, images = index_of(unknown, arm, {"os": "linux", "architecture": "arm64", **variant})

    class Index(Honest):
        def manifest(self, reference: str) -> None:
            for image in images:
                if reference == image.digest:
                    return self.answer(200, image.manifest, image.media_type)
            return self.answer(200, index, document.INDEX)

    host = lying(Index, images[0]).host
    assert puller.pull(f"{host}/x", parse_platform(asked)).image.manifest == images[2].digest
    assert puller.pull(f"{host}/x", parse_platform("linux/armhf")).image.manifest == images[1].digest
    with pytest.raises(RegistryError, match="has no image for linux/arm/v6; it has linux/arm/v7, linux/arm64"):
        puller.pull(f"{host}/x", parse_platform("linux/armel"))


def test_a_feature_that_an_image_without_an_index_needs(puller: Puller, lying: Lying) -> None:
    config = json.dumps(json.loads(made().config) | {"os.features": ["erofs"]}).encode()
    image = made(config=Descriptor(document.CONFIG, digest_of(config), len(config)).encoded())
    image.blobs[digest_of(config)] = config
    own = host()
    with pytest.raises(RegistryError, match=rf"is an image for linux\(\+erofs\)/.*, not for {own}$"):
        puller.pull(f"{lying(Honest, image).host}/x", own)


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/html", None])
def test_a_configuration_of_another_type(puller: Puller, lying: Lying, kind: str | None) -> None:
    """As registries of 2016 answered docker; without any type, as hand-made manifests have it."""
    plain = made()
    (config,) = (blob for blob in plain.blobs.values() if digest_of(blob) not in plain.layers)
    described = {"digest": digest_of(config), "size": len(config)} | ({"mediaType": kind} if kind else {})
    image = made(config=described)
    assert puller.pull(f"{lying(Honest, image).host}/x").image.id == digest_of(config)


@pytest.mark.parametrize("kind", [*FOREIGN, None])
def test_layers_that_a_registry_may_lack(puller: Puller, lying: Lying, kind: str | None) -> None:
    """Where it has them they are layers; they are not given to another one. One without a type is a layer."""
    plain = made()
    size = len(plain.blobs[plain.layers[0]])
    layer = {"digest": plain.layers[0], "size": size} | ({"mediaType": kind, "urls": ["http://x/"]} if kind else {})
    image = made(layers=[layer])
    source, target = lying(Honest, image), lying(Honest, image)
    assert puller.pull(f"{source.host}/x").image.layers == plain.layers
    target.image = made((1,))
    puller.store.tag(f"{source.host}/x", f"{target.host}/y")
    puller.push(f"{target.host}/y")
    assert target.pushed["manifest"] == image.manifest
    assert (plain.layers[0] in target.pushed) == (kind is None)
    assert ("Skipped foreign layer" in puller.said.getvalue()) == (kind is not None)


def test_an_image_without_layers(puller: Puller, lying: Lying) -> None:
    """FROM scratch, and a configuration."""
    config = json.dumps({"os": "linux", "rootfs": {"diff_ids": None}, "config": {"Volumes": {"/data": {}}}}).encode()
    described = Descriptor(document.CONFIG, digest_of(config), len(config)).encoded()
    plain = made()
    image = made(config=described, layers=[])._replace(blobs={**plain.blobs, digest_of(config): config})
    source, target = lying(Honest, image), lying(Honest, plain)
    pulled = puller.pull(f"{source.host}/x").image
    assert (pulled.layers, pulled.config) == ((), {"Volumes": {"/data": {}}})
    puller.store.tag(f"{source.host}/x", f"{target.host}/y")
    puller.push(f"{target.host}/y")
    assert target.pushed == {"manifest": image.manifest, digest_of(config): config}


def test_a_layer_of_no_bytes(puller: Puller, lying: Lying, registry: Registry) -> None:
    """Which is an empty archive to most readers. Pulled, pushed to a real registry, and pulled from there."""
    empty = digest_of(b"")
    plain = made()
    config = json.dumps({"os": "linux", "rootfs": {"diff_ids": [plain.layers[0], empty]}}).encode()
    described = Descriptor(document.CONFIG, digest_of(config), len(config)).encoded()
    layers = [
        Descriptor(document.LAYER, digest, len(blob)).encoded()
        for digest, blob in ((plain.layers[0], plain.blobs[plain.layers[0]]), (empty, b""))
    ]
    image = made(config=described, layers=layers)
    image = image._replace(blobs={**plain.blobs, digest_of(config): config, empty: b""})
    source, name = f"{lying(Honest, image).host}/x", f"{registry.host}/tools/empty"
    assert puller.pull(source).image.layers == (plain.layers[0], empty)
    puller.store.tag(source, name)
    assert puller.push(name) == image.digest
    puller.store.remove(source)
    puller.store.remove(name)
    assert puller.pull(name).image.layers == (plain.layers[0], empty)
