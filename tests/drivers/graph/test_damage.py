"""A root that somebody has damaged: a sentence says what is missing, and removing what stands on it still works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.catalog import open_driver, probe
from drivers.errors import Unavailable
from drivers.graph.directories import DirectorySnapshotter

NAMES = ("fuse-aufs", "overlay2", "vfs")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_layer_whose_directory_is_missing(name: str, depth: int, tmp_path: Path) -> None:
    found = probe(name, str(tmp_path))
    if not found.works:
        pytest.skip(f"{name}: {found.reason}")
    driver = open_driver(name, str(tmp_path / "root"))
    assert isinstance(driver, DirectorySnapshotter)
    parent = ""
    for layer in ("bottom", "top"):
        driver.prepare("key", parent)
        driver.commit(layer, "key")
        parent = layer
    driver.prepare("before", "top")
    with driver._store.read() as transaction:
        number = transaction.get(("bottom", "top")[depth]).id
    shutil.rmtree(tmp_path / "root" / "snapshots" / str(number))
    asked: tuple[Callable[[], object], ...] = (
        lambda: driver.prepare("after", "top"), lambda: driver.view("key", "top"), lambda: driver.mounts("before"),
    )  # fmt: skip
    for ask in asked:
        with pytest.raises(Unavailable, match=rf"a layer is damaged: .*snapshots/{number}/fs is missing"):
            ask()
    for key in ("before", "top", "bottom"):
        driver.remove(key)
    driver.cleanup()
    driver.check_invariants()
    driver.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_store_that_is_an_older_copy(name: str, tmp_path: Path) -> None:
    found = probe(name, str(tmp_path))
    if not found.works:
        pytest.skip(f"{name}: {found.reason}")
    root, copy = tmp_path / "root", tmp_path / "copy"
    driver = open_driver(name, str(root))
    driver.prepare("old")
    driver.close()
    shutil.copy(root / "metadata.db", copy)
    driver = open_driver(name, str(root))
    for key in ("new", "newer"):
        driver.prepare(key)
    driver.close()
    shutil.copy(root / "metadata.db", tmp_path / "current")
    shutil.copy(copy, root / "metadata.db")
    with pytest.raises(Unavailable, match=r"metadata\.db is an older copy: it knows 1 "):
        open_driver(name, str(root))
    shutil.copy(tmp_path / "current", root / "metadata.db")
    driver = open_driver(name, str(root))
    assert [info.name for info in driver.walk()] == ["old", "new", "newer"]
    driver.check_invariants()
    driver.close()
