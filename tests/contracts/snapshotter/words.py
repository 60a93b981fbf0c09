"""The subject of the suite, and the words that its cases are written in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from drivers.api import Kind, Snapshotter
from drivers.catalog import open_driver, probe
from drivers.graph.snapshotter import GraphSnapshotter
from tests import trees
from tests.mounting import mounted

# FUSE_AUFS_SCALE=full has the drivers to which a layer is dear do as the others do: ten minutes more in a guest.
FULL = os.environ.get("FUSE_AUFS_SCALE") == "full"


class Words:
    """One driver on a root of its own, and what the cases say with it."""

    driver_name: ClassVar[str]
    # What it is opened with; and other values of those that cannot be changed once there is a store.
    driver_options: ClassVar[Mapping[str, str]] = {}
    changed_options: ClassVar[Mapping[str, str]] = {}

    # The scale, for drivers to which a layer is dear, and for slow machines: how many layers a tree must be able to
    # have, how many snapshots are mounted at once (an even number), how many layers grow by random changes, how many
    # processes or threads race, and for how many turns; and the layers, files in each and bytes in each of those that
    # are changed in the middle.
    depth: ClassVar[int] = 128
    crowd: ClassVar[int] = 42
    compared_layers: ClassVar[int] = 12
    racers: ClassVar[int] = 6
    turns: ClassVar[int] = 8
    bulk: ClassVar[tuple[int, int, int]] = (4, 10, 1 << 17)

    # Whether a directory that comes from a lower layer can be renamed; the others say EXDEV.
    renames_lower_directories: ClassVar[bool] = True
    # Whether usage() knows files: devices and datasets know the blocks that they have, the file system's own with them.
    counts_files: ClassVar[bool] = True
    usage_slack: ClassVar[int] = 1 << 18
    # Bytes that a container's size is limited to, in a place where the driver can do that; 0 where it says that it
    # cannot. Twice as many are written.
    quota: ClassVar[int] = 0

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """The directory that the root is in. A driver's class may give it a file system of its own."""
        return tmp_path

    @pytest.fixture
    def root(self, place: Path) -> Iterator[str]:
        found = probe(self.driver_name, str(place), self.driver_options)
        if not found.works:
            pytest.skip(f"{self.driver_name}: {found.reason}")
        root = str(place / "driver")
        yield root
        shutil.rmtree(root, ignore_errors=True)  # copies of whole trees: pytest would keep those of three runs

    @pytest.fixture
    def driver(self, root: str) -> Iterator[Snapshotter]:
        driver = self.open(root)
        try:
            yield driver
            driver.cleanup()
            driver.check_invariants()
        finally:
            self.close(driver)

    def open(self, root: str) -> GraphSnapshotter:
        return open_driver(self.driver_name, root, self.driver_options)

    def close(self, driver: Snapshotter) -> None:
        """Close it with no snapshot that can be mounted: it then keeps no pool, device or mount."""
        for info in driver.walk():
            if info.kind is not Kind.COMMITTED:
                driver.remove(info.name)
        driver.close()

    @contextmanager
    def writing(self, driver: Snapshotter, name: str, parent: str = "") -> Iterator[str]:
        """The tree of a new active snapshot on `parent`; committed as `name` when the `with` ends."""
        key = f"writing-{name}"
        with mounted(driver.prepare(key, parent)) as path:
            yield path
        driver.commit(name, key)

    def plain_writing(self, driver: Snapshotter, name: str, parent: str) -> AbstractContextManager[str]:
        """As `writing`, for changes that only add; a driver may know a quicker way to make very many layers."""
        return self.writing(driver, name, parent)

    @contextmanager
    def looking(self, driver: Snapshotter, name: str) -> Iterator[str]:
        """The tree of the committed snapshot `name`, read-only."""
        key = f"looking-{name}"
        mounts = driver.view(key, name)
        try:
            with mounted(mounts) as path:
                yield path
        finally:
            driver.remove(key)

    def layer(self, driver: Snapshotter, name: str, tree: trees.Tree, parent: str = "") -> None:
        with self.writing(driver, name, parent) as path:
            trees.build(path, tree)

    def names(self, driver: Snapshotter) -> set[str]:
        return {info.name for info in driver.walk()}
