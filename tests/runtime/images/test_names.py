"""Which names an image has, and what goes with one of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.errors import ImageError, ImageInUse, NoSuchImage
from runtime.images.blobs import digest_of
from runtime.images.document import DOCKER_MANIFEST, LAYER, MANIFEST
from runtime.images.image import Image
from runtime.images.store import ImageStore
from tests.runtime.images.conftest import LAYERS, image_of, receive

MADE = image_of(LAYERS)
INDEX = "sha256:" + "1" * 64


@pytest.fixture
def pulled(store: ImageStore) -> Image:
    """`h:5/a:1`, as it comes from a registry."""
    receive(store, MADE)
    return store.publish(MADE.manifest, MANIFEST, ["h:5/a:1"], index=INDEX)


def test_a_tag(store: ImageStore, pulled: Image) -> None:
    assert store.tag("h:5/a:1", "mine").references == tuple(sorted([*pulled.references, "mine:latest"]))
    assert store.get("mine").id == store.tag(pulled.id[7:17], "docker.io/library/mine:2").id == pulled.id
    receive(store, other := image_of(LAYERS[:1]))
    store.publish(other.manifest, MANIFEST, ["b"])
    assert store.tag("b", "mine").id == other.id
    assert store.get("mine").id == other.id
    assert "mine:latest" not in store.get("h:5/a:1").references


@pytest.mark.parametrize(
    ("source", "name", "error"),
    [("nothing", "x", NoSuchImage), ("h:5/a:1", "X", ImageError), ("h:5/a:1", f"x@{INDEX}", ImageError)],
)
def test_no_tag(store: ImageStore, pulled: Image, source: str, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        store.tag(source, name)
    assert store.list() == [pulled]


def test_the_last_tag_takes_its_digests_along(store: ImageStore, pulled: Image) -> None:
    removed = store.remove("h:5/a:1")
    assert set(removed.untagged) == set(pulled.references)
    assert removed.deleted == (pulled.id, *pulled.layers)
    assert store.blob_sizes() == {}


def test_a_tag_of_another_repository_keeps_the_image(store: ImageStore, pulled: Image) -> None:
    store.tag("h:5/a:1", "mine")
    assert set(store.remove("h:5/a:1").untagged) == set(pulled.references)
    assert store.get("mine").references == ("mine:latest",)


def test_a_tag_of_the_same_repository_keeps_the_digests(store: ImageStore, pulled: Image) -> None:
    store.tag("h:5/a:1", "h:5/a:2")
    assert store.remove("h:5/a:1") == (("h:5/a:1",), ())
    assert store.get(f"h:5/a@{INDEX}").tags == ("h:5/a:2",)


def test_removing_a_digest(store: ImageStore, pulled: Image) -> None:
    name = f"h:5/a@{INDEX}"
    assert store.remove(name) == ((name,), ())
    with pytest.raises(NoSuchImage):
        store.remove(name)
    assert store.get("h:5/a:1").digests == (f"h:5/a@{pulled.manifest}",)


def test_an_image_that_lost_its_tag_keeps_its_digests(store: ImageStore, pulled: Image) -> None:
    receive(store, newer := image_of(LAYERS[:1]))
    store.publish(newer.manifest, MANIFEST, ["h:5/a:1"], index="sha256:" + "2" * 64)
    old = store.get(f"h:5/a@{INDEX}")
    assert (old.id, old.tags) == (pulled.id, ())
    assert old.name.startswith("h:5/a@sha256:")
    assert store.remove(old.id).deleted[0] == old.id  # its digests go with it


def test_an_id_of_an_image_with_several_tags(store: ImageStore, pulled: Image) -> None:
    store.tag("h:5/a:1", "mine")
    with pytest.raises(ImageInUse, match="has several names, remove each: h:5/a:1, mine:latest"):
        store.remove(pulled.id)
    store.remove("mine")
    assert store.remove(pulled.id[7:19]).deleted[0] == pulled.id


def test_two_manifests_of_one_configuration(store: ImageStore, pulled: Image) -> None:
    """The same image compressed in another way, or described by docker and by OCI: its id is any of them."""
    made = image_of(LAYERS, docker=True)
    receive(store, made)
    image = store.publish(made.manifest, DOCKER_MANIFEST, ["b"])
    assert (image.id, image.layers) == (pulled.id, pulled.layers)
    assert image.manifest != pulled.manifest
    assert store.get(image.id[7:]) == pulled
    assert store.remove("b") == (("b:latest",), (image.id,))  # the layers are the other's too
    store.open_blob(pulled.blobs[0].digest).close()


def test_a_store_of_before_there_were_registries(store: ImageStore) -> None:
    """Layers uncompressed, named by their diff ids; no media type but OCI's: it is the same layout."""
    blobs = Path(store.root, "blobs/sha256")
    configuration = MADE.blobs[MADE.id]
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": MADE.id,
                   "size": len(configuration)},
        "layers": [{"mediaType": LAYER, "digest": digest_of(layer), "size": len(layer)} for layer in LAYERS],
    }).encode()  # fmt: skip
    for data in (configuration, manifest, *LAYERS):
        (blobs / digest_of(data)[7:]).write_bytes(data)
    Path(store.root, "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [{
        "mediaType": MANIFEST, "digest": digest_of(manifest), "size": len(manifest),
        "annotations": {"org.opencontainers.image.ref.name": "old:latest"},
    }]}))  # fmt: skip
    again = ImageStore(store.root)
    image = again.get("old")
    assert image.layers == tuple(blob.digest for blob in image.blobs) == tuple(map(digest_of, LAYERS))
    receive(again, MADE)
    again.publish(MADE.manifest, MANIFEST, ["new"])
    assert len(again.list()) == 2
    assert again.remove("old").deleted == (MADE.id, *image.layers)
    assert again.get("new").layers == image.layers
    again.close()
