"""A driver on a disk that stops: the image of its file system is copied as it is at every step of some method, with
whatever the kernel has not written missing, and each copy is mounted and looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.api import Kind
from drivers.catalog import open_driver
from drivers.graph.directories import DirectorySnapshotter
from tests import trees
from tests.mounting import mounted
from tests.steps import before_each_step

pytestmark = pytest.mark.needs("loop", "program:mkfs.ext4")

TREE: trees.Tree = {"f": "x" * 5000, "dir": {"g": trees.File("y" * 70_000, mode=0o600)}, "l": trees.Symlink(target="f")}


@contextmanager
def disk(image: Path, place: Path) -> Iterator[Path]:
    """The ext4 image mounted through a loop device, at `place`."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 10 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    return image


def layer(driver: DirectorySnapshotter, key: str) -> str:
    with driver._store.read() as transaction:
        return driver._layout.join(transaction.get(key).id, "fs")


@contextmanager
def after_the_cut(name: str, copy: Path, tmp_path: Path) -> Iterator[DirectorySnapshotter]:
    with disk(copy, tmp_path / "after") as place:
        driver = open_driver(name, str(place / "root"))
        assert isinstance(driver, DirectorySnapshotter)
        try:
            driver.cleanup()
            driver.check_invariants()
            yield driver
        finally:
            driver.close()
    copy.unlink()


@pytest.mark.parametrize("name", ["fuse-aufs", "overlay2", "vfs"])
def test_a_committed_layer_survives(name: str, image: Path, tmp_path: Path) -> None:
    with disk(image, tmp_path / "disk") as place:
        driver = open_driver(name, str(place / "root"))
        assert isinstance(driver, DirectorySnapshotter)
        driver.prepare("key")
        trees.build(layer(driver, "key"), TREE)
        driver.commit("base", "key")
        driver.prepare("next", "base")
        shutil.copy(image, tmp_path / "cut")
        driver.remove("next")  # else what its mount needs outlasts the driver
        driver.close()
    with after_the_cut(name, tmp_path / "cut", tmp_path) as driver:
        assert driver.stat("base").kind is Kind.COMMITTED
        trees.assert_tree(layer(driver, "base"), TREE)
        with mounted(driver.mounts("next")) as path:
            trees.assert_tree(path, TREE)
        driver.remove("next")


@pytest.mark.parametrize("volatile", [False, True])
@pytest.mark.parametrize("name", ["overlay2", "fuse-aufs"])
def test_what_is_volatile_is_not_synced_until_it_is_committed(
    name: str, volatile: bool, image: Path, tmp_path: Path
) -> None:
    """A copy-up is on the disk when it is done, or it is not; after the commit it is in any case."""
    mark = os.urandom(64)
    with disk(image, tmp_path / "disk") as place:
        driver = open_driver(name, str(place / "root"))
        assert isinstance(driver, DirectorySnapshotter)
        driver.prepare("unpack")
        trees.build(layer(driver, "unpack"), {"f": mark, "g": ""})
        driver.commit("base", "unpack")
        assert image.read_bytes().count(mark) == 1
        with mounted(driver.prepare("key", "base", volatile=volatile)) as path:
            os.chmod(f"{path}/f", 0o600)
            assert image.read_bytes().count(mark) == (1 if volatile else 2)
        driver.commit("name", "key")
        shutil.copy(image, tmp_path / "cut")
        driver.close()
    with after_the_cut(name, tmp_path / "cut", tmp_path) as driver, mounted(driver.view("view", "name")) as path:
        trees.assert_tree(path, {"f": trees.File(mark, mode=0o600), "g": ""})


def test_a_cut_at_any_step(image: Path, tmp_path: Path) -> None:
    """vfs, for it writes most: from prepare on a parent to commit, what has a row is whole at every step."""
    copies: list[Path] = []
    states = set()
    with disk(image, tmp_path / "disk") as place:
        opened = open_driver("vfs", str(place / "root"))
        assert isinstance(opened, DirectorySnapshotter)
        driver = opened
        driver.prepare("unpack")
        trees.build(layer(driver, "unpack"), TREE)
        driver.commit("base", "unpack")

        def work() -> None:
            driver.prepare("key", "base")
            trees.build(layer(driver, "key"), {"new": "z" * 5000})
            driver.commit("name", "key")

        def cut(step: int) -> None:
            # The loop device's writes are in the file; what the file system has not written to the device is not.
            state = image.read_bytes()
            if state not in states:
                states.add(state)
                copies.append(tmp_path / f"cut-{step}")
                copies[-1].write_bytes(state)

        before_each_step(work, cut)
        driver.close()
    assert len(copies) > 4
    seen = set()
    for copy in copies:
        with after_the_cut("vfs", copy, tmp_path) as left:
            kinds = {info.name: info.kind for info in left.walk()}
            seen.add(tuple(sorted(kinds)))
            trees.assert_tree(layer(left, "base"), TREE)
            if "key" in kinds:
                found = trees.read(layer(left, "key"))
                trees.assert_same({**trees.expected(TREE), ".": found["."]},
                                  {path: entry for path, entry in found.items() if path != "new"}, str(copy))
            if "name" in kinds:
                trees.assert_tree(layer(left, "name"), {**TREE, "new": "z" * 5000})
    assert seen >= {("base",), ("base", "key")}
    shutil.rmtree(tmp_path / "disk")
