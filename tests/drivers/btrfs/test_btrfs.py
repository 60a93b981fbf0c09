"""Subvolumes as a driver, in a file of its own and on a root that is on btrfs; and what is in a layer then."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from drivers.api import Kind, Snapshotter
from drivers.btrfs import driver as btrfs_driver
from drivers.btrfs import subvolumes
from drivers.disk.trees import DIRECTORY
from drivers.errors import Unavailable
from tests import trees
from tests.children import in_child
from tests.contracts.snapshotter import SnapshotterContract
from tests.drivers.btrfs.looking import MIB, all_subvolumes, groups_of, layer, make_subvolume, on, opened
from tests.drivers.crashing import CrashContract
from tests.mounting import mounted
from tests.trees import Dir, File
from unionfs.linux.files import renameat2

pytestmark = pytest.mark.needs("loop", "program:mkfs.btrfs")


class TestBtrfsInAFile(SnapshotterContract):
    driver_name = "btrfs"
    driver_options = {"btrfs.loopsize": "2G"}
    quota = 50 * MIB


class TestBtrfsRoot(SnapshotterContract):
    driver_name = "btrfs"
    quota = 50 * MIB

    @pytest.fixture
    def place(self, disk: Path) -> Path:
        return disk


# Subvolumes in a layer.

NESTED: trees.Tree = {
    "d": Dir({"inner": Dir({"f": "in", "deeper": {"g": "deep"}}, mode=0o750, uid=5), "h": "h"}),
    "top": {"k": File("k" * 70_000, mode=0o600)},
}


def build_nested(path: str) -> None:
    """NESTED, of which three directories are subvolumes."""
    os.mkdir(f"{path}/d")
    make_subvolume(f"{path}/d/inner")
    make_subvolume(f"{path}/d/inner/deeper")
    make_subvolume(f"{path}/top")
    Path(path, "d/inner/f").write_text("in")
    Path(path, "d/inner/deeper/g").write_text("deep")
    Path(path, "d/h").write_text("h")
    Path(path, "top/k").write_text("k" * 70_000)
    os.chmod(f"{path}/top/k", 0o600)
    os.chmod(f"{path}/d/inner", 0o750)
    os.chown(f"{path}/d/inner", 5, -1)
    for name in ("top", "d/inner/deeper"):
        os.chmod(f"{path}/{name}", 0o755)
    os.utime(f"{path}/d", ns=(10**18, 10**18))


def test_subvolumes_in_a_layer_are_removed_with_it(either: str) -> None:
    driver = opened(either)
    with mounted(driver.prepare("key")) as path:
        build_nested(path)
        fd = on(f"{path}/d/inner")
        subvolumes.snapshot(fd, fd, "copy")
        subvolumes.set_read_only(fd, True)  # what is below it could not be destroyed, as it is
        os.close(fd)
    before = all_subvolumes(either)
    assert len(before) == 5
    driver.remove("key")
    assert not all_subvolumes(either)
    driver.check_invariants()
    driver.close()


def test_subvolumes_nested_deeper_than_a_path_or_the_stack(root: str) -> None:
    driver = opened(root)
    depth, name = 400, "n" * 20
    with mounted(driver.prepare("key")) as path:
        fd = on(path)
        for _ in range(depth):
            subvolumes.create(fd, name)
            below = os.open(name, DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
    assert len(all_subvolumes(root)) == depth + 1
    driver.remove("key")
    assert not all_subvolumes(root)
    driver.close()


def test_what_a_killed_commit_put_aside_goes_with_the_next(either: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = opened(either)
    with mounted(driver.prepare("key")) as path:
        build_nested(path)

    def die_after_the_exchange() -> None:
        def exchange(*how: Any) -> None:
            renameat2(*how)
            os._exit(9)

        monkeypatch.setattr(btrfs_driver, "renameat2", exchange)
        opened(either).commit("base", "key")

    assert in_child(die_after_the_exchange).wait() == 9
    driver.commit("base", "key")
    assert len(all_subvolumes(either)) == 1
    driver.remove("base")
    driver.close()


def test_a_committed_layer_has_plain_directories(either: str) -> None:
    """A snapshot of a subvolume has empty directories for those in it: children would not see what was in them."""
    driver = opened(either)
    with mounted(driver.prepare("key", quota=10 * MIB)) as path:
        build_nested(path)
    driver.commit("base", "key")
    assert len(all_subvolumes(either)) == 1
    with mounted(driver.view("view", "base")) as path:
        trees.assert_tree(path, NESTED)
        assert os.stat(f"{path}/d").st_mtime_ns == 10**18
    with mounted(driver.prepare("child", "base")) as path:
        assert driver.usage("child") == (1, 0)
        trees.assert_tree(path, NESTED)
    driver.remove("view")
    driver.remove("child")
    driver.check_invariants()
    driver.close()


def test_a_committed_layer_cannot_be_written_to(either: str) -> None:
    driver = opened(either)
    driver.prepare("key")
    Path(layer(driver, "key"), "f").write_text("x")
    driver.commit("base", "key")
    with pytest.raises(OSError, match="Read-only"):
        Path(layer(driver, "base"), "f").write_text("y")
    driver.close()


def test_usage_is_what_was_changed(either: str) -> None:
    driver = opened(either)
    driver.prepare("key")
    trees.build(layer(driver, "key"), {f"f{n}": File(os.urandom(8192)) for n in range(100)})
    driver.commit("base", "key")
    assert driver.usage("base") == (101, 100 * 8192)
    driver.prepare("child", "base")
    path = layer(driver, "child")
    assert driver.usage("child") == (1, 0)
    os.chmod(f"{path}/f1", 0o600)
    assert driver.usage("child") == (2, 0)
    os.unlink(f"{path}/f2")
    with open(f"{path}/f3", "r+b") as file:
        file.write(os.urandom(4096))
    Path(path, "inline").write_bytes(b"x" * 100)
    make_subvolume(f"{path}/sub")
    Path(path, "sub/g").write_bytes(os.urandom(1 << 16))
    assert driver.usage("child") == (6, 4096 + 100 + (1 << 16))  # the root, f1, f3, inline; sub, g
    driver.remove("child")
    driver.close()


@pytest.mark.parametrize("depth", ["own", "parent"])
def test_a_subvolume_that_was_replaced_by_a_plain_directory(either: str, depth: str) -> None:
    """As a copy of the root with cp has them."""
    driver = opened(either)
    driver.prepare("key")
    driver.commit("base", "key")
    driver.prepare("active", "base")
    path = layer(driver, "active" if depth == "own" else "base")
    os.rename(path, f"{path}.aside")
    os.mkdir(path)
    damaged = r"a layer is damaged: .*/btrfs/snapshots/[12]/fs is not what it was"
    with pytest.raises(Unavailable, match=damaged):
        driver.mounts("active")
    if depth == "parent":
        with pytest.raises(Unavailable, match=damaged):
            driver.prepare("new", "base")
    os.rmdir(path)
    os.rename(f"{path}.aside", path)
    driver.remove("active")
    driver.check_invariants()
    driver.close()


# Killed at any step.


class TestKilled(CrashContract):
    driver_name = "btrfs"
    each_way = False
    stride = 5  # each is two mounts, and often a mkfs

    def test_killed_in_commit_with_subvolumes(self, based: str) -> None:
        def make(driver: Snapshotter) -> None:
            driver.prepare("key")
            with mounted(driver.mounts("key")) as path:
                build_nested(path)

        with closing(opened(based)) as whole:
            make(whole)
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.commit("name", "key")):
            last = self.kinds(driver)
            assert last in ({"key": Kind.ACTIVE}, {"name": Kind.COMMITTED})
            trees.assert_tree(layer(driver, *last), NESTED)
            if last == {"key": Kind.ACTIVE} and len(all_subvolumes(based)) == 2:
                # It is plain already: make it what it was, so that every step is reached.
                driver.remove("key")
                make(driver)
        assert last == {"name": Kind.COMMITTED}

    def test_killed_in_prepare_with_a_quota(self, based: str) -> None:
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.prepare("key", "base", quota=10 * MIB)):
            last = self.kinds(driver)
            if last:
                driver.remove("key")
        assert last
        with closing(opened(based)):
            assert set(groups_of(based)) == {subvolumes.FS_TREE, *all_subvolumes(based)}

    def test_killed_in_remove_with_subvolumes(self, based: str) -> None:
        def make(driver: Snapshotter) -> None:
            with mounted(driver.prepare("key", "base", quota=10 * MIB)) as path:
                build_nested(path)

        with closing(opened(based)) as whole:
            make(whole)
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.remove("key")):
            last = self.kinds(driver)
            assert len(all_subvolumes(based)) == (5 if last else 1)
            if not last:
                make(driver)
        assert last == {}

    def test_killed_in_the_first_open(self, root: str) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(TestKilled, "stride", 12)  # a file system is made at each
            super().test_killed_in_the_first_open(root)

    def orphans(self, root: str) -> list[str]:
        files = set(os.listdir(root)) - {"btrfs.img", "btrfs.lock", "snapshots"}
        files = {name for name in files if not name.startswith((".probe-", "metadata.db"))}
        return [*super().orphans(root), *map(str, files)]
