"""Thin devices as a driver: in a kernel that has them (`python -m tests.vm`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.registry import open_driver, probe
from tests.contracts.snapshotter import SnapshotterContract
from tests.contracts.snapshotter.words import Words

MIB = 1 << 20
OPTIONS = {"dm.loopdatasize": "256M", "dm.loopmetadatasize": "4M", "dm.basesize": "24M", "dm.min_free_space": "3%"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("shared")
    found = probe("devicemapper", str(place), OPTIONS)
    if not found.works:
        pytest.skip(f"devicemapper: {found.reason}")
    yield str(place / "driver")
    shutil.rmtree(place)


class OneRoot(Words):
    """A pool and its base device take seconds to make in the guest: tests share one, in which each leaves no snapshot."""

    driver_name = "devicemapper"
    driver_options = OPTIONS
    changed_options = {"dm.blocksize": "128K"}
    begin_anew = ("test_options_that_nobody_has", "test_killed_in_the_first_open")

    @pytest.fixture
    def root(self, shared: str, place: Path, request: pytest.FixtureRequest) -> Iterator[str]:
        root = str(place / "driver") if request.node.originalname in self.begin_anew else shared
        yield root
        if Path(root).exists():
            driver = open_driver(self.driver_name, root)
            for info in reversed(list(driver.walk())):
                driver.remove(info.name)
            driver.close()


class TestDevicemapper(OneRoot, SnapshotterContract):
    depth = 12
    compared_layers = 4
    racers = 3
    turns = 4
    counts_files = False
    quota = 40 * MIB
