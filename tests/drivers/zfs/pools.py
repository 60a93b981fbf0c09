"""A pool of zfs for the tests of a module, which import the fixture."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from drivers.zfs.command import missing, zfs, zpool

POOL = f"fuse-aufs-test-{os.getpid()}"
OPTIONS = {"zfs.fsname": f"{POOL}/layers"}


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A pool on a file, with a dataset to keep layers below."""
    if missing():
        yield ""  # the tests that need it are skipped
        return
    disk = tmp_path_factory.mktemp("pool") / "disk"
    with open(disk, "wb") as file:
        file.truncate(2 << 30)
    zpool("create", "-ocachefile=none", "-mnone", POOL, str(disk))
    try:
        zfs("create", f"{POOL}/layers")
        zfs("create", f"{POOL}/other")
        yield POOL
    finally:
        zpool("destroy", "-f", POOL)
