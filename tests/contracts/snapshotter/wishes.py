"""What a driver can be asked for besides trees: a limit, haste, its differences by themselves, and its options."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from drivers.api import Snapshotter
from drivers.catalog import open_driver
from drivers.errors import NotFound, NotSupported, Unavailable
from tests import trees
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted
from unionfs.linux.files import syncfs


class Wishes(Words):
    def test_a_container_is_kept_to_its_size(self, driver: Snapshotter) -> None:
        """graphtest's SetQuota: twice the limit is not written; what has room is, and the layer below counts for
        nothing. A driver that cannot do that says so before it makes anything."""
        self.layer(driver, "base", {"below": os.urandom(1 << 20)})
        if not self.quota:
            with pytest.raises(NotSupported, match="--storage-opt size=") as refused:
                driver.prepare("key", "base", quota=50 << 20)
            assert "\n" not in str(refused.value)
            assert self.names(driver) == {"base"}
            return
        chunk = os.urandom(1 << 20)
        with mounted(driver.prepare("key", "base", quota=self.quota)) as path:
            with open(f"{path}/large", "wb", buffering=0) as file, pytest.raises(OSError, match=r"quota|space") as full:
                for _ in range(2 * self.quota // len(chunk)):
                    file.write(chunk)
                os.fsync(file.fileno())
            assert full.value.errno in (errno.EDQUOT, errno.ENOSPC)
            assert os.stat(f"{path}/large").st_size > self.quota // 2
            os.unlink(f"{path}/large")
            _sync(path)  # what a file system gets back it may give out late
            Path(path, "small").write_bytes(chunk)
            assert Path(path, "below").stat().st_size == 1 << 20
        assert driver.stat("key").quota == self.quota
        with mounted(driver.mounts("key")) as path:
            assert Path(path, "small").read_bytes() == chunk
        with mounted(driver.prepare("free", "base")) as path:
            assert Path(path, "below").stat().st_size == 1 << 20

    def test_what_is_thrown_away_is_otherwise_the_same(self, driver: Snapshotter) -> None:
        """Volatile, mounted twice, then committed after all: as any other layer."""
        self.layer(driver, "base", {"f": "old", "g": "g"})
        mounts = driver.prepare("key", "base", volatile=True)
        assert driver.mounts("key") == mounts
        assert driver.stat("key").volatile
        with mounted(mounts) as path:
            Path(path, "f").write_text("new")
            os.unlink(f"{path}/g")
        with mounted(driver.mounts("key")) as path:
            trees.assert_tree(path, {"f": "new"})
            with open(f"{path}/h", "w") as file:
                os.fsync(file.fileno())
        driver.commit("name", "key")
        with self.looking(driver, "name") as path:
            trees.assert_tree(path, {"f": "new", "h": ""})
        driver.prepare("thrown", "name", volatile=True)
        driver.remove("thrown")

    def test_differences_are_what_changed_and_nothing_else(self, driver: Snapshotter) -> None:
        tree: trees.Tree = {"kept": "", "gone": "", "changed": "old", "again": {"old": ""}, "dir": {"deep": ""}}
        self.layer(driver, "base", tree)
        with mounted(driver.prepare("key", "base")) as path:
            os.unlink(f"{path}/gone")
            shutil.rmtree(f"{path}/again")
            trees.build(path, {"again": {"new": ""}, "added": "added"})
            Path(path, "changed").write_text("new")
            os.chmod(f"{path}/dir", 0o700)
        active = driver.differences("key")
        driver.commit("name", "key")
        committed = driver.differences("name")
        with pytest.raises(NotFound):
            driver.differences("key")
        assert (active is None) == (committed is None)
        if committed is None:
            return
        found = {name: entry for name, entry in trees.read(committed.path).items() if ".wh..wh." not in name}
        gone = {"aufs": ".wh.gone", "overlay": "gone"}[committed.form]
        assert set(found) == {".", gone, "again", "again/new", "added", "changed", "dir"}
        assert found["changed"].content == b"new"
        if committed.form == "overlay":
            assert os.lstat(f"{committed.path}/gone").st_rdev == 0

    def test_options_that_nobody_has(self, root: str) -> None:
        with pytest.raises(Unavailable, match=f"storage driver {self.driver_name} has no option 'no.such'"):
            open_driver(self.driver_name, root, {**self.driver_options, "no.such": "1"})
        assert not os.path.exists(root)

    def test_options_are_kept(self, root: str) -> None:
        """Who opens the root later need not know them; who gives them again may."""
        first = self.open(root)
        self.layer(first, "base", {"f": "f"})
        self.close(first)
        for options in (None, self.driver_options):
            driver = open_driver(self.driver_name, root, options)
            with self.looking(driver, "base") as path:
                trees.assert_tree(path, {"f": "f"})
            self.layer(driver, "kept" if options is None else "again", {"g": "g"}, "base")
            self.close(driver)

    def test_options_that_are_fixed(self, root: str) -> None:
        self.close(self.open(root))
        for name, value in self.changed_options.items():
            with pytest.raises(Unavailable, match=rf"{name} .* cannot be changed"):
                open_driver(self.driver_name, root, {**self.driver_options, name: value})
        self.close(self.open(root))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(fd)
    finally:
        os.close(fd)
