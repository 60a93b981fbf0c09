"""Names, parents, kinds and labels: what a driver knows of its snapshots."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from drivers.api import Kind, Snapshotter
from drivers.errors import AlreadyExists, InUse, InvalidName, NotFound, WrongState
from tests import trees
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted
from tests.trees import File


class Graph(Words):
    def test_a_layer_on_a_layer(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"a": "a", "dir": {"b": "b"}})
        with self.writing(driver, "two", "one") as path:
            trees.assert_tree(path, {"a": "a", "dir": {"b": "b"}})
            trees.build(path, {"c": "c"})
            trees.build(f"{path}/dir", {"d": "d"})
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {"a": "a", "c": "c", "dir": {"b": "b", "d": "d"}})
        with self.looking(driver, "one") as path:
            trees.assert_tree(path, {"a": "a", "dir": {"b": "b"}})

    def test_siblings_do_not_see_each_other(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"shared": "shared"})
        with mounted(driver.prepare("left", "base")) as left, mounted(driver.prepare("right", "base")) as right:
            Path(left, "shared").write_text("left")
            os.unlink(f"{right}/shared")
            trees.assert_tree(left, {"shared": "left"})
            trees.assert_tree(right, {})
        with self.looking(driver, "base") as path:
            trees.assert_tree(path, {"shared": "shared"})

    def test_mounts_are_those_of_prepare_and_keep_what_was_written(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"f": "old"})
        mounts = driver.prepare("key", "base")
        assert driver.mounts("key") == mounts
        with mounted(mounts) as path:
            Path(path, "f").write_text("new")
        with mounted(driver.mounts("key")) as path:
            trees.assert_tree(path, {"f": "new"})

    def test_stat_of_an_active_snapshot(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {})
        driver.prepare("key", "base", labels={"why": "test"})
        info = driver.stat("key")
        assert (info.name, info.parent, info.kind) == ("key", "base", Kind.ACTIVE)
        assert info.labels == {"why": "test"}
        assert 0 < info.created == info.updated

    def test_stat_of_a_committed_snapshot(self, driver: Snapshotter) -> None:
        driver.prepare("key", labels={"of": "key"})
        started = driver.stat("key").created
        driver.commit("name", "key", labels={"of": "name"})
        info = driver.stat("name")
        assert (info.name, info.parent, info.kind) == ("name", "", Kind.COMMITTED)
        assert info.labels == {"of": "name"}
        assert info.created > started
        with pytest.raises(NotFound):
            driver.stat("key")

    def test_stat_of_a_view(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {})
        driver.view("key", "base")
        assert driver.stat("key").kind is Kind.VIEW
        assert driver.stat("key").parent == "base"

    def test_parents_are_transitive(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"1": ""})
        self.layer(driver, "two", {"2": ""}, "one")
        self.layer(driver, "three", {"3": ""}, "two")
        assert [driver.stat(n).parent for n in ("one", "two", "three")] == ["", "one", "two"]
        with self.looking(driver, "three") as path:
            trees.assert_tree(path, {"1": "", "2": "", "3": ""})

    def test_a_key_is_taken_once(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {})
        driver.prepare("key", "base")
        for make in (driver.prepare, driver.view):
            for taken in ("key", "base"):
                with pytest.raises(AlreadyExists, match=taken):
                    make(taken, "base")
        with pytest.raises(AlreadyExists, match="base"):
            driver.commit("base", "key")
        with pytest.raises(AlreadyExists, match="key"):
            driver.commit("key", "key")
        assert driver.stat("key").kind is Kind.ACTIVE

    def test_only_what_is_committed_is_a_parent(self, driver: Snapshotter) -> None:
        driver.prepare("active")
        driver.view("view")
        for make in (driver.prepare, driver.view):
            with pytest.raises(NotFound, match="missing"):
                make("key", "missing")
            for parent in ("active", "view"):
                with pytest.raises(WrongState, match=parent):
                    make("key", parent)
        assert self.names(driver) == {"active", "view"}

    def test_only_what_is_active_can_be_committed(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {})
        driver.view("view", "base")
        with pytest.raises(WrongState, match="view"):
            driver.commit("name", "view")
        with pytest.raises(WrongState, match="committed"):
            driver.commit("name", "base")
        with pytest.raises(NotFound):
            driver.commit("name", "missing")
        with pytest.raises(WrongState):
            driver.mounts("base")
        assert self.names(driver) == {"base", "view"}

    @pytest.mark.parametrize("method", ["stat", "usage", "mounts", "remove"])
    def test_what_does_not_exist_is_not_found(self, driver: Snapshotter, method: str) -> None:
        with pytest.raises(NotFound, match="missing"):
            getattr(driver, method)("missing")

    @pytest.mark.parametrize("name", ["", "..", "../../escape", "/etc", "a/b", "a b", "a\nb", "a\0b", ".hidden", "-x",
                                      "é", "x" * 256])  # fmt: skip
    def test_names_that_could_be_paths_are_refused(self, driver: Snapshotter, root: str, name: str) -> None:
        around = sorted(os.listdir(os.path.dirname(root)))
        with pytest.raises(InvalidName):
            driver.prepare(name)
        driver.prepare("key")
        with pytest.raises(InvalidName):
            driver.commit(name, "key")
        assert self.names(driver) == {"key"}
        assert sorted(os.listdir(os.path.dirname(root))) == around

    @pytest.mark.parametrize("name", ["sha256:" + "0a" * 32, "x", "A-b_c.d@e+f~", "x" * 255])
    def test_names_that_callers_use_are_taken(self, driver: Snapshotter, name: str) -> None:
        driver.prepare("key")
        driver.commit(name, "key")
        assert driver.stat(name).name == name

    def test_update_replaces_the_labels(self, driver: Snapshotter) -> None:
        driver.prepare("key", labels={"a": "1", "b": "2"})
        before = driver.stat("key")
        after = driver.update(dataclasses.replace(before, labels={"b": "3", "ü": "\n'"}))
        assert after == driver.stat("key")
        assert after.labels == {"b": "3", "ü": "\n'"}
        assert (after.created, after.kind) == (before.created, before.kind)
        assert after.updated > before.updated
        with pytest.raises(WrongState):
            driver.update(dataclasses.replace(after, kind=Kind.COMMITTED))
        with pytest.raises(WrongState):
            driver.update(dataclasses.replace(after, parent="other"))
        with pytest.raises(NotFound):
            driver.update(dataclasses.replace(after, name="missing"))
        assert driver.stat("key") == after

    def test_remove_frees_the_name(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"f": "1"})
        driver.remove("base")
        assert self.names(driver) == set()
        self.layer(driver, "base", {"f": "2"})
        with self.looking(driver, "base") as path:
            trees.assert_tree(path, {"f": "2"})

    def test_a_parent_is_in_use(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {})
        self.layer(driver, "two", {}, "one")
        driver.prepare("active", "two")
        driver.view("view", "one")
        with pytest.raises(InUse, match="two is the parent of active"):
            driver.remove("two")
        with pytest.raises(InUse, match="one is the parent of two and others"):
            driver.remove("one")
        for name in ("active", "two", "view", "one"):
            driver.remove(name)
        assert self.names(driver) == set()

    def test_remove_after_commit(self, driver: Snapshotter) -> None:
        """The key is free after the commit, and removing the name leaves the new key alone."""
        self.layer(driver, "base", {"f": "1"})
        driver.prepare("key", "base")
        driver.commit("name", "key")
        with mounted(driver.prepare("key", "name")) as path:
            Path(path, "f").write_text("2")
        driver.commit("second", "key")
        driver.remove("second")
        driver.prepare("key", "name")
        driver.remove("key")
        driver.remove("name")
        assert self.names(driver) == {"base"}

    def test_remove_of_an_intermediate_snapshot(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"f": "base"})
        self.layer(driver, "middle", {"g": "middle"}, "base")
        driver.prepare("top", "middle")
        with pytest.raises(InUse):
            driver.remove("middle")
        driver.remove("top")
        driver.remove("middle")
        with self.looking(driver, "base") as path:
            trees.assert_tree(path, {"f": "base"})

    def test_walk_gives_parents_first(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {})
        driver.prepare("early")
        self.layer(driver, "two", {}, "one")
        driver.prepare("active", "two")
        driver.view("view", "two")
        infos = list(driver.walk())
        assert {info.name: info.kind for info in infos} == {
            "one": Kind.COMMITTED, "early": Kind.ACTIVE, "two": Kind.COMMITTED, "active": Kind.ACTIVE,
            "view": Kind.VIEW,
        }  # fmt: skip
        seen = {""}
        for info in infos:
            assert info.parent in seen
            seen.add(info.name)
        for info in reversed(infos):
            driver.remove(info.name)

    def test_stat_while_walking(self, driver: Snapshotter) -> None:
        for name in "abc":
            driver.prepare(name)
        for info in driver.walk():
            assert driver.stat(info.name) == info

    def test_remove_while_walking(self, driver: Snapshotter) -> None:
        for name in "abcd":
            driver.prepare(name)
        seen = []
        for info in driver.walk():
            seen.append(info.name)
            driver.remove(info.name)
            driver.prepare(f"new-{info.name}")
        assert seen == list("abcd")
        assert self.names(driver) == {f"new-{name}" for name in "abcd"}

    def test_usage_leaves_the_parents_out(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"big": os.urandom(1 << 20)})
        base = driver.usage("base")
        assert 1 << 20 <= base.size < (1 << 20) + self.usage_slack
        with mounted(driver.prepare("key", "base")) as path:
            before = driver.usage("key")
            for name in ("small", "another"):
                Path(path, name).write_bytes(os.urandom(1 << 18))
                os.link(f"{path}/{name}", f"{path}/{name}-again")
            with open(f"{path}/hole", "wb") as hole:
                hole.truncate(1 << 30)
        during = driver.usage("key")
        driver.commit("name", "key")
        assert 2 << 18 <= during.size - before.size < (2 << 18) + self.usage_slack
        if self.counts_files:
            assert driver.usage("name") == during
            assert base.inodes == 2
            assert during.inodes - before.inodes == 3

    def test_close_twice(self, root: str) -> None:
        driver = self.open(root)
        driver.close()
        driver.close()
        for call in (lambda: driver.stat("x"), lambda: driver.prepare("x"), lambda: driver.cleanup()):
            with pytest.raises(WrongState, match="closed"):
                call()

    def test_everything_is_there_after_reopening(self, root: str) -> None:
        driver = self.open(root)
        self.layer(driver, "base", {"f": "base"})
        with mounted(driver.prepare("key", "base")) as path:
            Path(path, "f").write_text("changed")
        infos = list(driver.walk())
        driver.close()
        driver = self.open(root)
        try:
            assert list(driver.walk()) == infos
            with mounted(driver.mounts("key")) as path:
                trees.assert_tree(path, {"f": "changed"})
        finally:
            self.close(driver)

    def test_the_root_is_closed_to_others(self, driver: Snapshotter, root: str) -> None:
        """CVE-2021-41091: in a directory that others may search, they can run the set-id files of any image."""
        self.layer(driver, "base", {"su": File("", mode=0o4755)})
        driver.prepare("key", "base")
        assert stat.S_IMODE(os.stat(root).st_mode) == 0o700
