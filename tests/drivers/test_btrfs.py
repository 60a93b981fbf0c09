"""Subvolumes as a driver, in a file of its own and on a root that is on btrfs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.mounts import Mount, mounted
from tests.contracts.snapshotter import SnapshotterContract

pytestmark = pytest.mark.needs("loop", "program:mkfs.btrfs")

MIB = 1 << 20


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A btrfs that is not ours."""
    from drivers.loop import attached

    image = tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(2 << 30)
    subprocess.run(["mkfs.btrfs", "--quiet", "--nodiscard", image], check=True, capture_output=True)
    with attached(str(image)) as device, mounted([Mount("btrfs", device)]) as path:
        yield Path(path)


class TestBtrfsInAFile(SnapshotterContract):
    driver_name = "btrfs"
    driver_options = {"btrfs.loopsize": "2G"}
    quota = 50 * MIB


class TestBtrfsRoot(SnapshotterContract):
    driver_name = "btrfs"
    quota = 50 * MIB

    @pytest.fixture
    def place(self, btrfs: Path) -> Path:
        return btrfs
