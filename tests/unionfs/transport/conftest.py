"""The file system that shows FUSE connections."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from unionfs.linux import mounts


@pytest.fixture
def fusectl() -> Iterator[None]:
    where = "/sys/fs/fuse/connections"
    if os.path.ismount(where):
        yield
        return
    mounts.mount("fusectl", where, "fusectl")
    yield
    mounts.umount2(where)
