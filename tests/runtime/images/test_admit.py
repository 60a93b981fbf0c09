"""What is pulled is unpacked at once; what cannot be is not kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Snapshotter
from drivers.mounts import mounted
from drivers.registry import open_driver
from runtime.errors import ImageError
from runtime.images.admit import admit
from runtime.images.blobs import digest_of
from runtime.images.document import MANIFEST
from runtime.images.store import ImageStore
from runtime.images.unpack import chain_ids
from tests.drivers.archive import tape
from tests.runtime.images.conftest import LAYERS, Made, image_of, receive

pytestmark = pytest.mark.needs("tmpfs")
MADE = image_of(LAYERS)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Snapshotter]:
    opened = open_driver("vfs", str(tmp_path / "vfs"))
    yield opened
    opened.close()


def publish(store: ImageStore, made: Made, *names: str) -> None:
    receive(store, made)
    store.publish(made.manifest, MANIFEST, names)


def test_an_image_of_compressed_layers(store: ImageStore, driver: Snapshotter) -> None:
    publish(store, MADE, "a")
    image = store.get("a")
    name = admit(store, image, driver)
    assert name == chain_ids(image.layers)[-1]
    mounts = driver.view("look", name)
    with mounted(mounts) as path:
        assert sorted(each.name for each in Path(path).rglob("*")) == ["a", "b", "etc"]
    driver.remove("look")
    assert admit(store, image, driver) == name


BAD = {
    "hostile": (image_of([LAYERS[0], tape.archive(tape.file(b"../x"))]), r"\.\./x \(byte 0\): its name contains"),
    "another layer's diff id": (
        image_of(LAYERS, diff_ids=[digest_of(LAYERS[0]), digest_of(b"x")]), "its diff id is wrong",
    ),
    "no archive": (image_of([LAYERS[0], b"x" * 2000]), "this is no tar archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_refused_image_is_not_kept(store: ImageStore, driver: Snapshotter, case: str) -> None:
    made, says = BAD[case]
    publish(store, MADE, "good")
    admit(store, store.get("good"), driver)
    blobs = store.blob_sizes()
    publish(store, made, "bad", "bad:2", f"bad@{digest_of(made.manifest)}")
    with pytest.raises(ImageError, match=says):
        admit(store, store.get("bad"), driver)
    assert [image.references for image in store.list()] == [("good:latest",)]
    assert store.blob_sizes() == blobs
    assert [info.name for info in driver.walk()] == chain_ids(store.get("good").layers)


def test_a_full_disk_is_no_fault_of_the_image(store: ImageStore, memory_of: Callable[[str], Path]) -> None:
    publish(store, image_of([tape.archive(tape.file(b"big", os.urandom(1 << 20)))]), "a")
    driver = open_driver("vfs", f"{memory_of('512k')}/vfs")
    try:
        with pytest.raises(ImageError, match="free some space"):
            admit(store, store.get("a"), driver)
        assert store.get("a")
    finally:
        driver.close()
