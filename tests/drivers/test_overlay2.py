"""The kernel's overlayfs as a driver."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import drivers
from drivers.api import Snapshotter
from drivers.catalog import open_driver, probe
from drivers.errors import NotSupported, Unavailable
from drivers.mounts import overlayfs
from tests import trees
from tests.contracts.snapshotter import SnapshotterContract
from tests.contracts.snapshotter.stability import Stability
from tests.mounting import mounted

pytestmark = pytest.mark.needs("overlay")


def upper(driver: Snapshotter, key: str) -> str:
    """The directory of an active snapshot that its mount writes to."""
    [mount] = driver.mounts(key)
    if mount.type == "bind":
        return mount.source
    return next(option for option in mount.options if option.startswith("upperdir=")).removeprefix("upperdir=")


class TestOverlay2(SnapshotterContract):
    driver_name = "overlay2"
    depth = 20  # for TestManyLayers has them all
    renames_lower_directories = False

    def test_a_committed_layer_is_in_overlay_form(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"gone": "", "dir": {"a": "a"}, "kept": "", "again": {"old": ""}})
        with mounted(driver.prepare("key", "base")) as path:
            os.unlink(f"{path}/gone")
            shutil.rmtree(f"{path}/again")
            trees.build(path, {"again": {"new": "new"}})
            os.chmod(f"{path}/kept", 0o600)
        layer = trees.read(upper(driver, "key"))
        assert set(layer) == {".", "gone", "again", "again/new", "kept"}
        gone = os.lstat(f"{upper(driver, 'key')}/gone")
        assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
        assert os.getxattr(f"{upper(driver, 'key')}/again", "trusted.overlay.opaque") == b"y"
        assert set(os.listxattr(f"{upper(driver, 'key')}/kept")) <= {"trusted.overlay.origin"}

    def test_a_volatile_snapshot_of_before_a_restart(self, driver: Snapshotter) -> None:
        """It is neither mounted nor committed, but removed."""
        self.layer(driver, "base", {"f": "f"})
        with mounted(driver.prepare("key", "base", volatile=True)) as path:
            Path(path, "f").write_text("g")
        boot = Path(upper(driver, "key"), "../work/boot")
        assert boot.read_text() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        boot.write_text("another")
        with pytest.raises(Unavailable, match="remove the container"), mounted(driver.mounts("key")):
            pass
        with pytest.raises(Unavailable, match="remove the container"):
            driver.commit("name", "key")
        driver.remove("key")


class TestManyLayers(Stability):
    """As many as the kernel stacks; in memory, for each layer is synced to the disk."""

    driver_name = "overlay2"
    depth = overlayfs.MAX_LAYERS if overlayfs.takes_layers() else 200
    compared_layers = 128
    renames_lower_directories = False

    @pytest.fixture
    def place(self, memory: Path) -> Path:
        return memory

    @contextmanager
    def plain_writing(self, driver: Snapshotter, name: str, parent: str) -> Iterator[str]:
        """What only adds can be written to the layer directly. Each tenth is mounted all the same."""
        key = f"writing-{name}"
        mounts = driver.prepare(key, parent)
        if int(name.split("-")[1]) % 10 == 9:
            with mounted(mounts) as path:
                yield path
        else:
            yield upper(driver, key)
        driver.commit(name, key)

    def test_more_layers_than_the_kernel_stacks(self, driver: Snapshotter) -> None:
        parent = ""
        for number in range(overlayfs.MAX_LAYERS + 1):
            driver.prepare("key", parent)
            driver.commit(f"layer-{number}", "key")
            parent = f"layer-{number}"
        for make in (driver.prepare, driver.view):
            with pytest.raises(NotSupported, match="layer-500 has 501 layers and overlayfs takes 500"):
                make("key", parent)
        assert "key" not in self.names(driver)


def test_what_the_probe_found_is_in_its_sentence(tmp_path: Path) -> None:
    works, reason = probe("overlay2", str(tmp_path))
    assert works
    found = r"native differences \(d_type; index, redirect_dir and metacopy off\)"
    assert re.fullmatch(rf"{found}; up to (500 layers, by (descriptor|name)|about 220 layers, .*), on \w+", reason)


@pytest.mark.needs("loop", "program:mkfs.ext4")
def test_a_file_system_without_d_type(tmp_path: Path) -> None:
    """ext4 without `filetype`, as xfs with ftype=0, which this kernel may mount no more."""
    image, place = tmp_path / "image", tmp_path / "place"
    image.touch()
    place.mkdir()
    os.truncate(image, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^filetype", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        with pytest.raises(Unavailable, match=r"\(d_type\), which overlayfs needs: make the file system anew"):
            open_driver("overlay2", str(place / "root"))
        assert os.listdir(place) == ["lost+found"]
    finally:
        subprocess.run(["umount", place], check=True)


IN_A_USER_NAMESPACE = """
import os, shutil, sys
from drivers.api import Mount
from drivers.mounts.attached import mount_all
from tests.mounting import mounted
from drivers.catalog import open_driver, probe
from tests import trees

place = sys.argv[1]
mount_all([Mount("tmpfs", "tmpfs")], place)
print(probe("overlay2", place).reason)
driver = open_driver("overlay2", f"{place}/root")
driver.prepare("unpack")
with mounted(driver.mounts("unpack")) as path:
    trees.build(path, {"again": {"old": ""}, "gone": "", "kept": "kept"})
driver.commit("base", "unpack")
with mounted(driver.prepare("key", "base")) as path:
    shutil.rmtree(f"{path}/again")
    os.unlink(f"{path}/gone")
    trees.build(path, {"again": {"new": ""}})
driver.commit("name", "key")
with mounted(driver.view("view", "name")) as path:
    trees.assert_tree(path, {"again": {"new": ""}, "kept": "kept"})
"""


@pytest.mark.needs("program:unshare")
def test_in_a_user_namespace(tmp_path: Path) -> None:
    """Where the kernel lets nobody set "trusted." attributes."""
    program = [sys.executable, "-c", IN_A_USER_NAMESPACE, str(tmp_path)]
    command = ["unshare", "--user", "--map-root-user", "--mount", *program]
    where = os.path.dirname(os.path.dirname(drivers.__file__))
    result = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "user.overlay attributes (userxattr)" in result.stdout
