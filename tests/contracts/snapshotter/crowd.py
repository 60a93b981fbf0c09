"""Many snapshots at once: each is its own, and what one of them runs out of, or is kept from, is not the others'."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from drivers.api import Snapshotter
from tests import trees
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted


class Neighbours(Words):
    def test_one_that_is_full_leaves_its_neighbours_alone(self, driver: Snapshotter) -> None:
        """They write what is theirs to write, meanwhile and afterwards, and nothing of theirs is lost."""
        if not self.quota:
            pytest.skip(f"{self.driver_name} has no quotas in this place")
        chunk = os.urandom(1 << 18)
        self.layer(driver, "base", {"below": chunk})
        keys = {"full": self.quota, "limited": self.quota, "free": 0}
        with contextlib.ExitStack() as stack:
            paths = {
                key: stack.enter_context(mounted(driver.prepare(key, "base", quota=quota)))
                for key, quota in keys.items()
            }
            Path(paths["limited"], "before").write_bytes(chunk)
            with open(f"{paths['full']}/large", "wb", buffering=0) as file, pytest.raises(OSError) as full:
                for _ in range(2 * self.quota // len(chunk)):
                    file.write(chunk)
                os.fsync(file.fileno())
            assert full.value.errno in (errno.EDQUOT, errno.ENOSPC)
            for key in ("limited", "free"):
                with open(f"{paths[key]}/meanwhile", "wb", buffering=0) as file:
                    for _ in range(self.quota // 4 // len(chunk)):
                        assert file.write(chunk) == len(chunk)
                    os.fsync(file.fileno())
            assert Path(paths["full"], "below").read_bytes() == chunk
        driver.commit("limits", "limited")
        driver.remove("full")
        with self.looking(driver, "limits") as path:
            assert Path(path, "before").read_bytes() == chunk
            assert Path(path, "meanwhile").read_bytes() == chunk * (self.quota // 4 // len(chunk))
        with mounted(driver.mounts("free")) as path:
            assert Path(path, "meanwhile").read_bytes() == chunk * (self.quota // 4 // len(chunk))
        with self.looking(driver, "base") as path:
            trees.assert_tree(path, {"below": chunk})


class Crowd(Neighbours):
    def test_many_are_mounted_at_once(self, driver: Snapshotter) -> None:
        """On one parent, with what each has written; half of them are committed, and the others removed."""
        base: trees.Tree = {"dir": {"shared": "of all", "gone": "of all"}}
        self.layer(driver, "base", base)
        with contextlib.ExitStack() as stack:
            paths = [
                stack.enter_context(mounted(driver.prepare(f"key-{number}", "base"))) for number in range(self.crowd)
            ]
            for number, path in enumerate(paths):
                Path(path, "own").write_text(str(number))
                Path(path, "dir/shared").write_text(f"of {number}")
                os.unlink(f"{path}/dir/gone")
            for number, path in enumerate(paths):
                trees.assert_tree(path, {"own": str(number), "dir": {"shared": f"of {number}"}})
        for number in range(0, self.crowd, 2):
            driver.commit(f"layer-{number}", f"key-{number}")
            driver.remove(f"key-{number + 1}")
        for number in range(0, self.crowd, 2):
            driver.view(f"view-{number}", f"layer-{number}")
        with contextlib.ExitStack() as stack:
            for number in range(0, self.crowd, 2):
                path = stack.enter_context(mounted(driver.mounts(f"view-{number}")))
                trees.assert_tree(path, {"own": str(number), "dir": {"shared": f"of {number}"}})
        with self.looking(driver, "base") as path:
            trees.assert_tree(path, base)
