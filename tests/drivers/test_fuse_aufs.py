"""Our own union as a driver, and what it leaves on disk: a layer in AUFS form."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.api import Kind, Snapshotter
from drivers.errors import InUse
from drivers.mounts.attached import mount_all, unmount_all
from tests import trees
from tests.contracts.snapshotter import SnapshotterContract
from tests.mounting import kill_server, mounted
from tests.trees import File

REPOSITORY = Path(__file__).parents[2]


def branch(driver: Snapshotter, key: str) -> str:
    """The writable branch of an active snapshot's mount."""
    [mount] = driver.mounts(key)
    return mount.source if mount.type == "bind" else mount.options[0].removeprefix("br=").split("=rw", 1)[0]


_WITHOUT_PYFUSE3 = """
import os, sys
from drivers.mounts.attached import mount_all, unmount_all
from drivers.catalog import open_driver, probe
root, target = sys.argv[1:]
print(probe("fuse-aufs", root).works)
driver = open_driver("fuse-aufs", root)
driver.prepare("below", "")
driver.commit("base", "below")
mount_all(driver.prepare("key", "base"), target)
try:
    open(f"{target}/written", "w").close()
    print(os.listdir(target))
finally:
    unmount_all(target)
    driver.remove("key")
    driver.close()
"""


@pytest.fixture
def without_pyfuse3(tmp_path: Path) -> dict[str, str]:
    """The environment of an interpreter, and of those that it starts, in which neither package can be imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['trio'] = sys.modules['pyfuse3'] = None\n"
    )
    return {**os.environ, "PYTHONPATH": f"{tmp_path}/site"}


@pytest.mark.needs("fuse")
def test_the_direct_transport_takes_no_package(tmp_path: Path, without_pyfuse3: dict[str, str]) -> None:
    (tmp_path / "target").mkdir()
    words = [sys.executable, "-c", _WITHOUT_PYFUSE3, f"{tmp_path}/root", f"{tmp_path}/target"]
    done = subprocess.run(words, env=without_pyfuse3, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (["True", "['written']"], "")


@pytest.mark.needs("fuse")
def test_the_transport_that_takes_packages_names_them(tmp_path: Path, without_pyfuse3: dict[str, str]) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "mnt").mkdir()
    words = [sys.executable, "-m", "unionfs", "mount", f"{tmp_path}/low", f"{tmp_path}/mnt", "-o", "transport=pyfuse3"]
    done = subprocess.run(words, env=without_pyfuse3, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode
    [line] = done.stderr.splitlines()
    assert "pyfuse3 (asked for) takes the Python packages trio and pyfuse3" in line


class TestFuseAufs(SnapshotterContract):
    driver_name = "fuse-aufs"
    crowd = 8  # each mount is a process of its own

    @contextmanager
    def plain_writing(self, driver: Snapshotter, name: str, parent: str) -> Iterator[str]:
        """A branch is the layer, so what only adds can be written to it directly: no server for each of 128 layers."""
        driver.prepare(f"writing-{name}", parent)
        yield branch(driver, f"writing-{name}")
        driver.commit(name, f"writing-{name}")

    def test_a_committed_layer_is_in_aufs_form(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"gone": "", "dir": {"a": "a"}, "kept": "", "again": {"old": ""}})
        with mounted(driver.prepare("key", "base")) as path:
            os.unlink(f"{path}/gone")
            shutil.rmtree(f"{path}/again")
            trees.build(f"{path}/again", {"new": "new"})
            trees.build(f"{path}/dir", {"b": "b"})
        layer = branch(driver, "key")
        driver.commit("name", "key")
        found = {name for name in trees.read(layer) if not name.startswith(".wh..wh.")}
        assert found == {".", ".wh.gone", "again", "again/.wh..wh..opq", "again/new", "dir", "dir/b"}
        assert trees.read(layer)[".wh.gone"].mode == 0o444
        assert not os.path.exists(f"{layer}/.wh..wh.orph")

    def test_hard_links_stay_one_file_in_all_layers(self, driver: Snapshotter) -> None:
        """A layer with one changed name of three: the other two, which are below, are the changed file as well."""
        with self.writing(driver, "base") as path:
            trees.build(path, {"a": "old", "dir": {}})
            os.link(f"{path}/a", f"{path}/b")
            os.link(f"{path}/a", f"{path}/dir/c")
        with self.writing(driver, "second", "base") as path:
            Path(path, "b").write_text("new")
        with self.writing(driver, "third", "second") as path:
            trees.assert_tree(path, {"a": "new", "b": "new", "dir": {"c": "new"}})
            assert os.stat(f"{path}/a").st_ino == os.stat(f"{path}/dir/c").st_ino
            os.unlink(f"{path}/a")
            Path(path, "dir/c").write_text("newer")
        with self.looking(driver, "third") as path:
            trees.assert_tree(path, {"b": "newer", "dir": {"c": "newer"}})

    def test_a_mounted_snapshot_is_in_use(self, driver: Snapshotter, tmp_path: Path) -> None:
        self.layer(driver, "base", {"f": "old"})
        target = tmp_path / "target"
        target.mkdir()
        mount_all(driver.prepare("key", "base"), str(target))
        try:
            changes: tuple[Callable[[], None], ...] = (
                lambda: driver.commit("name", "key"), lambda: driver.remove("key"),
            )  # fmt: skip
            for change in changes:
                with pytest.raises(InUse, match="unmount it first"):
                    change()
            assert driver.stat("key").kind is Kind.ACTIVE
            (target / "f").write_text("new")
        finally:
            unmount_all(str(target))
        driver.commit("name", "key")
        with self.looking(driver, "name") as path:
            trees.assert_tree(path, {"f": "new"})

    def test_the_layer_of_a_killed_server_is_committed_clean(self, driver: Snapshotter, tmp_path: Path) -> None:
        """Its work area, with whatever it was making there, is not part of the layer."""
        self.layer(driver, "base", {"f": File(b"old", mode=0o640)})
        target = tmp_path / "target"
        target.mkdir()
        mount_all(driver.prepare("key", "base"), str(target))
        layer = branch(driver, "key")
        held = os.open(target / "held", os.O_CREAT | os.O_WRONLY)
        try:
            os.write(held, b"not in the layer")
            os.unlink(target / "held")
            (target / "f").write_text("new")
            os.unlink(target / "f")
            (target / "g").write_text("g")
            kill_server(str(target))
            Path(layer, ".wh..wh.orph", "9").write_text("half of a copy-up")
        finally:
            with contextlib.suppress(OSError):  # ENOTCONN, from the flush of a file whose server is dead
                os.close(held)
            unmount_all(str(target))
        driver.commit("name", "key")
        assert not os.path.exists(f"{layer}/.wh..wh.orph")
        with self.looking(driver, "name") as path:
            trees.assert_tree(path, {"g": "g"})
