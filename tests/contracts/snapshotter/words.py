"""The subject of the suite, and the words that its cases are written in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from drivers.api import Snapshotter
from drivers.mounts import mounted
from drivers.registry import open_driver, probe
from tests import trees


class Words:
    """One driver on a root of its own, and what the cases say with it."""

    driver_name: ClassVar[str]
    # How many layers a tree must be able to have, and how many of them grow by random changes.
    depth: ClassVar[int] = 128
    compared_layers: ClassVar[int] = 12
    # Whether a directory that comes from a lower layer can be renamed; the others say EXDEV.
    renames_lower_directories: ClassVar[bool] = True

    @pytest.fixture
    def root(self, tmp_path: Path) -> Iterator[str]:
        found = probe(self.driver_name, str(tmp_path))
        if not found.works:
            pytest.skip(f"{self.driver_name}: {found.reason}")
        root = str(tmp_path / "driver")
        yield root
        shutil.rmtree(root, ignore_errors=True)  # copies of whole trees: pytest would keep those of three runs

    @pytest.fixture
    def driver(self, root: str) -> Iterator[Snapshotter]:
        driver = open_driver(self.driver_name, root)
        try:
            yield driver
            driver.cleanup()
            driver.check_invariants()  # type: ignore[attr-defined]
        finally:
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
