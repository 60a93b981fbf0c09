"""Roots of the driver devicemapper, opened; and disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drivers.catalog import open_driver, probe
from drivers.devicemapper import Driver
from drivers.disk import loop
from tests.drivers.devicemapper.roots import MIB, OPTIONS, SHARED, OneRoot, Opener, empty, of_options, pool_on_files


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A root on a pool that stays up: to bring one up and to make its base device take seconds in the guest."""
    place = tmp_path_factory.mktemp("shared")
    found = probe("devicemapper", str(place))
    if not found.works:
        pytest.skip(f"devicemapper: {found.reason}")
    with pool_on_files(place, SHARED, 4 * MIB, 256 * MIB):
        yield str(place / "driver")
    shutil.rmtree(place)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """opened(option=value, …) opens the driver on a root of the test's own; `dm_fs="xfs"` is dm.fs=xfs."""
    found = probe("devicemapper", str(tmp_path))
    if not found.works:
        pytest.skip(f"devicemapper: {found.reason}")
    drivers: list[Driver] = []

    def open_it(defaults: Mapping[str, str] = OPTIONS, **given: str) -> Driver:
        options = {**({} if (tmp_path / "driver").exists() else defaults), **of_options(given)}
        driver = open_driver("devicemapper", str(tmp_path / "driver"), options)
        assert isinstance(driver, Driver)
        drivers.append(driver)
        return driver

    yield open_it
    for driver in drivers:
        driver.close()
    if "dm.thinpooldev" not in drivers[0]._store.options:  # such a one has gone by now
        empty(str(tmp_path / "driver"))


@pytest.fixture
def driver(shared: str) -> Iterator[Driver]:
    """On the root that tests share, with the pool up."""
    driver = open_driver("devicemapper", shared, OneRoot.driver_options)
    assert isinstance(driver, Driver)
    driver.view("empty")
    yield driver
    driver.close()
    empty(shared)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two block devices: for metadata, and for data."""
    paths = [tmp_path / name for name in ("metadata", "data")]
    for path, size in zip(paths, (4 * MIB, 64 * MIB), strict=True):
        path.touch()
        os.truncate(path, size)
    with loop.attached(str(paths[0])) as metadata, loop.attached(str(paths[1])) as data:
        yield metadata, data
