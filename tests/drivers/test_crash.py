"""The drivers of directories, killed before any step of any method; and a disk that is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from drivers.api import Snapshotter
from drivers.mounts import Mount, mounted
from drivers.registry import open_driver
from tests import trees
from tests.drivers.crashing import CrashContract

pytestmark = pytest.mark.needs("tmpfs")


class TestVfs(CrashContract):
    driver_name = "vfs"


@pytest.mark.needs("overlay")
class TestOverlay2(CrashContract):
    driver_name = "overlay2"


@pytest.mark.needs("fuse")
class TestFuseAufs(CrashContract):
    driver_name = "fuse-aufs"
    unpacking_stride = 41

    @contextmanager
    def inside(self, driver: Snapshotter, key: str) -> Iterator[str]:
        """The branch, and a work area in it as a killed server leaves behind: no server for each step."""
        [mount] = driver.mounts(key)
        branch = mount.options[0].removeprefix("br=").split("=rw", 1)[0]
        os.makedirs(f"{branch}/.wh..wh.orph/left", exist_ok=True)
        yield branch


def test_a_full_disk() -> None:
    """ENOSPC in the middle of a copy: the caller gets it, and nothing is left even without cleanup()."""
    with mounted([Mount("tmpfs", "tmpfs", ("size=4m",))]) as place:
        driver = open_driver("vfs", f"{place}/vfs")
        with mounted(driver.prepare("unpack")) as path:
            trees.build(path, {"small": "x", "large": os.urandom(3 << 20)})
        driver.commit("base", "unpack")
        with pytest.raises(OSError, match="No space left") as full:
            driver.prepare("key", "base")
        assert full.value.errno == errno.ENOSPC
        driver.check_invariants()
        assert [info.name for info in driver.walk()] == ["base"]
        driver.view("key", "base")
        driver.close()
