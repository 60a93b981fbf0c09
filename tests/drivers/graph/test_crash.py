"""The drivers of directories, killed before any step of any method; and a disk that is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from drivers.api import Kind, Mount, Snapshotter
from drivers.catalog import open_driver
from tests import trees
from tests.drivers.crashing import CrashContract
from tests.mounting import mounted
from tests.steps import before_each_step

pytestmark = pytest.mark.needs("tmpfs")


class TestVfs(CrashContract):
    driver_name = "vfs"


@pytest.mark.needs("overlay")
class TestOverlay2(CrashContract):
    driver_name = "overlay2"
    upkeep_stride = 7


@pytest.mark.needs("fuse")
class TestFuseAufs(CrashContract):
    driver_name = "fuse-aufs"
    upkeep_stride = 7
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


@pytest.mark.parametrize("method", ["commit", "remove"])
def test_the_disk_is_full_from_any_step_on(method: str) -> None:
    """The method does what it was asked for, or says ENOSPC and has done nothing; asked again, it is done although the
    disk is as full as before."""
    with mounted([Mount("tmpfs", "tmpfs", ("size=4m",))]) as place:
        filled_from_any_step(method, Path(place))


def filled_from_any_step(method: str, place: Path) -> None:
    driver = open_driver("vfs", str(place / "root"))
    filler = place / "filler"
    full_at, steps, refused = 1, 1, 0
    while full_at <= steps:
        if "key" not in {info.name for info in driver.walk()}:
            driver.prepare("key")
            with mounted(driver.mounts("key")) as path:
                trees.build(path, {"f": "written"})

        def fill(number: int, at: int = full_at) -> None:
            if number == at:
                with filler.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                    while True:
                        file.write(bytes(1 << 16))

        act = partial(driver.commit, "name", "key") if method == "commit" else partial(driver.remove, "key")
        try:
            steps = before_each_step(act, fill)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            refused += 1
            steps = full_at + 1
            assert driver.stat("key").kind is Kind.ACTIVE
            act()
        filler.unlink(missing_ok=True)
        if method == "commit":
            with mounted(driver.view("view", "name")) as path:
                trees.assert_tree(path, {"f": "written"})
            driver.remove("view")
            driver.remove("name")
        assert list(driver.walk()) == []
        driver.cleanup()
        driver.check_invariants()
        driver.close()
        driver = open_driver("vfs", str(place / "root"))  # the reserve is taken again
        full_at += 1
    assert steps > 20
    assert refused
    driver.close()
