"""What is pulled is unpacked at once; what cannot be is not kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Kind, Snapshotter
from drivers.catalog import open_driver
from runtime.errors import ImageError
from runtime.images.admit import admit
from runtime.images.blobs import digest_of
from runtime.images.document import MANIFEST
from runtime.images.store import ImageStore
from runtime.images.unpack import chain_ids
from tests.drivers.archive import tape
from tests.mounting import mounted
from tests.runtime.images.conftest import LAYERS, Made, image_of, receive

pytestmark = pytest.mark.needs("tmpfs")
MADE = image_of(LAYERS)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Snapshotter]:
    opened = open_driver("vfs", str(tmp_path / "vfs"))
    yield opened
    opened.close()


def got(store: ImageStore, driver: Snapshotter, made: Made, *names: str) -> str:
    """As a pull does it; the snapshot's name."""
    receive(store, made)
    name = admit(store, made.manifest, MANIFEST, names, driver)
    store.publish(made.manifest, MANIFEST, names)
    return name


def test_an_image_of_compressed_layers(store: ImageStore, driver: Snapshotter) -> None:
    name = got(store, driver, MADE, "a")
    assert name == chain_ids(store.get("a").layers)[-1]
    mounts = driver.view("look", name)
    with mounted(mounts) as path:
        assert sorted(each.name for each in Path(path).rglob("*")) == ["a", "b", "etc"]
    driver.remove("look")
    assert got(store, driver, MADE, "b") == name


BAD = {
    "hostile": (image_of([LAYERS[0], tape.archive(tape.file(b"../x"))]), r"\.\./x \(byte 0\): its name leads above"),
    "another layer's diff id": (
        image_of(LAYERS, diff_ids=[digest_of(LAYERS[0]), digest_of(b"x")]), "its diff id is wrong",
    ),
    "no archive": (image_of([LAYERS[0], b"x" * 2000]), "this is not a tar archive"),
    "another number of layers": (image_of(LAYERS, diff_ids=[digest_of(LAYERS[0])]), "and its configuration another"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_refused_image_takes_no_name(store: ImageStore, driver: Snapshotter, case: str) -> None:
    made, says = BAD[case]
    got(store, driver, MADE, "app")
    before = store.list(), store.blob_sizes()
    with pytest.raises(ImageError, match=says):
        got(store, driver, made, "app", f"app@{digest_of(made.manifest)}")
    assert (store.list(), store.blob_sizes()) == before
    assert [info.name for info in driver.walk()] == chain_ids(store.get("app").layers)
    assert got(store, driver, MADE, "app")


def test_a_full_disk(store: ImageStore, memory_of: Callable[[str], Path]) -> None:
    driver = open_driver("vfs", f"{memory_of('4m')}/vfs")
    try:
        with pytest.raises(ImageError, match="free some space"):
            got(store, driver, image_of([tape.archive(tape.file(b"big", os.urandom(5 << 20)))]), "a")
        assert store.list() == []
        assert not [info for info in driver.walk() if info.kind is Kind.ACTIVE]
    finally:
        driver.close()
