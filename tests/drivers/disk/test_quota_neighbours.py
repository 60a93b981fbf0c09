"""What a container that has used up its size is to its neighbours, on a file system with project quotas; where the
kernel has none, in the guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.snapshotter.crowd import Neighbours
from tests.drivers.disk.limited import MAKERS, MIB, disk

pytestmark = pytest.mark.needs("loop")


class Limited(Neighbours):
    quota = 40 * MIB

    @pytest.fixture(params=list(MAKERS))
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
        with disk(request.param, tmp_path / "image", "prjquota") as path:
            yield path


class TestOverlay2(Limited):
    driver_name = "overlay2"


@pytest.mark.needs("fuse")
class TestFuseAufs(Limited):
    driver_name = "fuse-aufs"
