"""What every storage driver must do, whatever it is made of.

A driver's test module is one class:

    class TestOverlay2(SnapshotterContract):
        driver_name = "overlay2"

The cases follow containerd's snapshotter suite (core/snapshots/testsuite) and containers/storage's graphtest, and add
the seven that containerd lists as not written yet. Trees are written and read through real mounts.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from drivers.api import Kind, Snapshotter
from drivers.errors import AlreadyExists, InUse, InvalidName, NotFound, WrongState
from drivers.mounts import mounted
from drivers.registry import open_driver, probe
from tests import trees
from tests.drivers.children import in_child
from tests.trees import Dir, File, HardLink, Special, Symlink


class SnapshotterContract:
    driver_name: ClassVar[str]
    # How many layers a tree must be able to have, and how many of them grow by random changes.
    depth: ClassVar[int] = 128
    compared_layers: ClassVar[int] = 12
    # Whether a directory that comes from a lower layer can be renamed; the others say EXDEV.
    renames_lower_directories: ClassVar[bool] = True

    @pytest.fixture
    def root(self, tmp_path: Path) -> Iterator[str]:
        found = probe(self.driver_name, str(tmp_path))
        if not found.works:
            pytest.skip(f"{self.driver_name}: {found.reason}")
        root = str(tmp_path / "driver")
        yield root
        shutil.rmtree(root, ignore_errors=True)  # copies of whole trees: pytest would keep those of three runs

    @pytest.fixture
    def driver(self, root: str) -> Iterator[Snapshotter]:
        driver = open_driver(self.driver_name, root)
        yield driver
        driver.cleanup()
        driver.check_invariants()  # type: ignore[attr-defined]
        driver.close()

    # Words of the suite.

    @contextmanager
    def writing(self, driver: Snapshotter, name: str, parent: str = "") -> Iterator[str]:
        """The tree of a new active snapshot on `parent`; committed as `name` when the `with` ends."""
        key = f"writing-{name}"
        with mounted(driver.prepare(key, parent)) as path:
            yield path
        driver.commit(name, key)

    def plain_writing(self, driver: Snapshotter, name: str, parent: str) -> AbstractContextManager[str]:
        """As `writing`, for changes that only add; a driver may know a quicker way to make very many layers."""
        return self.writing(driver, name, parent)

    @contextmanager
    def looking(self, driver: Snapshotter, name: str) -> Iterator[str]:
        """The tree of the committed snapshot `name`, read-only."""
        key = f"looking-{name}"
        mounts = driver.view(key, name)
        try:
            with mounted(mounts) as path:
                yield path
        finally:
            driver.remove(key)

    def layer(self, driver: Snapshotter, name: str, tree: trees.Tree, parent: str = "") -> None:
        with self.writing(driver, name, parent) as path:
            trees.build(path, tree)

    def names(self, driver: Snapshotter) -> set[str]:
        return {info.name for info in driver.walk()}

    # The graph.

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
        assert 1 << 20 <= base.size < 3 << 19
        assert base.inodes == 2
        with mounted(driver.prepare("key", "base")) as path:
            before = driver.usage("key")
            for name in ("small", "another"):
                Path(path, name).write_bytes(os.urandom(1 << 18))
                os.link(f"{path}/{name}", f"{path}/{name}-again")
            with open(f"{path}/hole", "wb") as hole:
                hole.truncate(1 << 30)
        during = driver.usage("key")
        driver.commit("name", "key")
        assert driver.usage("name") == during
        assert 2 << 18 <= during.size - before.size < 3 << 18
        assert during.inodes - before.inodes == 3 + self.inodes_of_two_links

    # A driver whose form on disk needs an inode for hard links says how many.
    inodes_of_two_links: ClassVar[int] = 0

    def test_close_twice(self, root: str) -> None:
        driver = open_driver(self.driver_name, root)
        driver.close()
        driver.close()
        for call in (lambda: driver.stat("x"), lambda: driver.prepare("x"), lambda: driver.cleanup()):
            with pytest.raises(WrongState, match="closed"):
                call()

    def test_everything_is_there_after_reopening(self, root: str) -> None:
        driver = open_driver(self.driver_name, root)
        self.layer(driver, "base", {"f": "base"})
        with mounted(driver.prepare("key", "base")) as path:
            Path(path, "f").write_text("changed")
        infos = list(driver.walk())
        driver.close()
        driver = open_driver(self.driver_name, root)
        try:
            assert list(driver.walk()) == infos
            with mounted(driver.mounts("key")) as path:
                trees.assert_tree(path, {"f": "changed"})
        finally:
            driver.close()

    def test_the_root_is_closed_to_others(self, driver: Snapshotter, root: str) -> None:
        """CVE-2021-41091: in a directory that others may search, they can run the set-id files of any image."""
        self.layer(driver, "base", {"su": File("", mode=0o4755)})
        driver.prepare("key", "base")
        assert stat.S_IMODE(os.stat(root).st_mode) == 0o700

    # Trees.

    def test_a_tree_without_a_parent_is_empty(self, driver: Snapshotter) -> None:
        with mounted(driver.prepare("active")) as path:
            trees.assert_tree(path, {})
        with mounted(driver.view("view")) as path:
            trees.assert_tree(path, {})

    def test_the_root_directory_is_0755(self, driver: Snapshotter) -> None:
        before = os.umask(0o077)
        try:
            with mounted(driver.prepare("active")) as path:
                found = os.stat(path)
        finally:
            os.umask(before)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)

    def test_the_root_directory_is_the_parents(self, driver: Snapshotter) -> None:
        with self.writing(driver, "base") as path:
            os.chown(path, 12, 34)
            os.chmod(path, 0o1775)
            os.setxattr(path, "user.note", b"root")
        with self.writing(driver, "child", "base") as path:
            found = os.stat(path)
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o1775, 12, 34)
            assert os.getxattr(path, "user.note") == b"root"
            os.chmod(path, 0o701)
        with self.looking(driver, "child") as path:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o701
        with mounted(driver.prepare("grandchild", "child")) as path:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o701

    def test_views_are_read_only(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"f": "1", "d": {}})
        self.layer(driver, "two", {"g": "2"}, "one")
        for parent, expected in (("", {}), ("one", {"f": "1", "d": {}}), ("two", {"f": "1", "g": "2", "d": {}})):
            with mounted(driver.view(f"view-{parent}", parent)) as path:
                trees.assert_tree(path, expected)
                for change in (
                    lambda path=path: os.mkdir(f"{path}/new"),
                    lambda path=path: os.chmod(path, 0o700),
                    lambda path=path: os.setxattr(path, "user.x", b""),
                    lambda path=path: os.utime(path),
                ):
                    with pytest.raises(OSError, match="Read-only") as refused:
                        change()
                    assert refused.value.errno == errno.EROFS
                if expected:
                    with pytest.raises(OSError, match="Read-only"):
                        open(f"{path}/f", "r+").close()
                    with pytest.raises(OSError, match="Read-only"):
                        os.unlink(f"{path}/f")
                trees.assert_tree(path, expected)

    def test_everything_a_file_is_goes_through_layers(self, driver: Snapshotter) -> None:
        """What a first layer has, a second one changes by name only, and a view of the third still has."""
        acl = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff"
                            "20000400ffffffff")  # user::rw-,user:1234:r--,group::r--,mask::r--,other::r--
        capability = bytes.fromhex("0100000200200000000000000000000000000000")
        tree: trees.Tree = {
            "setuid": File("Some data", mode=0o4222, uid=1, gid=2),
            "directory": Dir({"inside": File("x", mtime_ns=1_000_000_001)}, mode=0o1705, uid=3, gid=4),
            "acl": File("acl", xattrs={"system.posix_acl_access": acl}, uid=7),
            "capable": File("elf", xattrs={"security.capability": capability}, mode=0o755),
            "noted": File("", xattrs={"user.a": b"\0b", "trusted.c": b""}),
            "inherits": Dir({"child": File("x", mode=0o640)}, xattrs={"system.posix_acl_default": acl}),
            "link": Symlink(target="/nowhere/at all", uid=5, gid=6, mtime_ns=3),
            "fifo": Special(type=stat.S_IFIFO, mode=0o604),
            "socket": Special(type=stat.S_IFSOCK, mode=0o640),
            "null": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o666),
            "loop": Special(type=stat.S_IFBLK, rdev=os.makedev(7, 0), mode=0o660, gid=6),
            "sparse": File(b"start", holes=1 << 24),
            "name with \\ : , = and \udcff": "x",
            "old": File("old", mtime_ns=0),
            "new": File("new", mtime_ns=4_000_000_000_123_456_789),
            "zz": HardLink("setuid"),
        }
        with self.writing(driver, "base") as path:
            trees.build(path, tree)
            os.link(f"{path}/setuid", f"{path}/directory/linked")
            before = trees.read(path)
        self.layer(driver, "second", {"another": ""}, "base")
        with self.looking(driver, "second") as path:
            after = trees.read(path)
            assert os.stat(f"{path}/sparse").st_blocks * 512 <= 1 << 16
        assert after.pop("another").content == b""
        trees.assert_same(before, after, "after a layer")

    def test_file_updates_at_the_same_second(self, driver: Snapshotter) -> None:
        """A change that keeps size and mtime is a change."""
        self.layer(driver, "layer-0", {"f": File("0", mtime_ns=10**18)})
        for number in range(1, 6):
            with self.writing(driver, f"layer-{number}", f"layer-{number - 1}") as path:
                Path(path, "f").write_text(str(number))
                os.utime(f"{path}/f", ns=(10**18, 10**18))
        for number in range(6):
            with self.looking(driver, f"layer-{number}") as path:
                trees.assert_tree(path, {"f": File(str(number), mtime_ns=10**18)})

    def test_a_lower_directory_is_removed(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"sub": {"f": "1"}, "g": "1"}, "stays": ""})
        with self.writing(driver, "two", "one") as path:
            shutil.rmtree(f"{path}/dir")
            trees.assert_tree(path, {"stays": ""})
        with self.writing(driver, "three", "two") as path:
            trees.assert_tree(path, {"stays": ""})
            trees.build(path, {"dir": {"f": "3"}})
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {"stays": ""})
        with self.looking(driver, "three") as path:
            trees.assert_tree(path, {"dir": {"f": "3"}, "stays": ""})

    @pytest.mark.parametrize("depth", [1, 2, 5, 10])
    def test_echo(self, driver: Snapshotter, depth: int) -> None:
        """A subtree at some depth is deleted in one layer and made again, smaller, in the next."""

        def nested(levels: int, content: str) -> dict[str, trees.Entry]:
            inner: dict[str, trees.Entry] = {"end": content}
            for level in range(levels, 0, -1):
                inner = {f"d{level}": inner, f"f{level}": content}
            return inner

        where = "/".join(f"d{level}" for level in range(1, depth + 1))
        reference = nested(10, "first")
        self.layer(driver, "one", reference)
        with self.writing(driver, "two", "one") as path:
            shutil.rmtree(f"{path}/{where}")
        with self.writing(driver, "three", "two") as path:
            assert not os.path.lexists(f"{path}/{where}")
            trees.build(f"{path}/{where}", {"echo": "third", "end": {}})
        parent = reference
        for level in range(1, depth):
            inner = parent[f"d{level}"]
            assert isinstance(inner, dict)
            parent = inner
        del parent[f"d{depth}"]
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, reference)
        parent[f"d{depth}"] = {"echo": "third", "end": {}}
        with self.looking(driver, "three") as path:
            trees.assert_tree(path, reference)

    def test_files_deleted_in_a_child(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"a": "a", "b": "b"}, "c": "c"})
        with self.writing(driver, "two", "one") as path:
            os.unlink(f"{path}/dir/a")
            os.unlink(f"{path}/c")
        self.layer(driver, "three", {"c": "again"}, "two")
        with self.looking(driver, "three") as path:
            trees.assert_tree(path, {"dir": {"b": "b"}, "c": "again"})

    def test_a_lower_file_is_moved(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"f": File("content", mode=0o640)}, "other": {}})
        with self.writing(driver, "two", "one") as path:
            os.rename(f"{path}/dir/f", f"{path}/other/g")
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {"dir": {}, "other": {"g": File("content", mode=0o640)}})

    def test_a_lower_directory_is_moved(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"sub": {"f": "1"}}, "other": {}})
        with self.writing(driver, "two", "one") as path:
            if self.renames_lower_directories:
                os.rename(f"{path}/dir", f"{path}/other/moved")
            else:
                with pytest.raises(OSError, match="cross-device") as refused:
                    os.rename(f"{path}/dir", f"{path}/other/moved")
                assert refused.value.errno == errno.EXDEV
                shutil.move(f"{path}/dir", f"{path}/other/moved")  # what every program then does
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {"other": {"moved": {"sub": {"f": "1"}}}})

    def test_a_new_directory_is_moved(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"old": {"f": "1"}})
        with self.writing(driver, "two", "one") as path:
            trees.build(path, {"new": {"g": "2"}})
            shutil.rmtree(f"{path}/old")
            os.rename(f"{path}/new", f"{path}/old")
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {"old": {"g": "2"}})

    def test_chown_of_lower_files(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"f": File("x", mode=0o751)}, "link": Symlink(target="dir")})
        with self.writing(driver, "two", "one") as path:
            for name in ("dir", "dir/f", "link"):
                os.chown(f"{path}/{name}", 1001, 1002, follow_symlinks=False)
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {
                "dir": Dir({"f": File("x", mode=0o751, uid=1001, gid=1002)}, uid=1001, gid=1002),
                "link": Symlink(target="dir", uid=1001, gid=1002),
            })  # fmt: skip
        with self.looking(driver, "one") as path:
            trees.assert_tree(path, {"dir": Dir({"f": File("x", uid=0)}, uid=0), "link": Symlink(target="dir", uid=0)})

    def test_chmod_of_lower_files(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": Dir({"f": File("x" * 10_000, mode=0o600)}, mode=0o700)})
        with self.writing(driver, "two", "one") as path:
            os.chmod(f"{path}/dir/f", 0o4711)
            os.chmod(f"{path}/dir", 0o2770)
            trees.assert_tree(path, {"dir": Dir({"f": File("x" * 10_000, mode=0o4711)}, mode=0o2770)})
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {"dir": Dir({"f": File("x" * 10_000, mode=0o4711)}, mode=0o2770)})
        with self.looking(driver, "one") as path:
            trees.assert_tree(path, {"dir": Dir({"f": File("x" * 10_000, mode=0o600)}, mode=0o700)})

    def test_directory_permissions_last_through_commit(self, driver: Snapshotter) -> None:
        modes = {"a": 0o755, "b": 0o700, "c": 0o1777, "d": 0o2750, "e": 0o000}
        tree = {name: Dir({"sub": Dir({}, mode=mode)}, mode=mode, uid=mode % 7) for name, mode in modes.items()}
        self.layer(driver, "one", tree)
        with self.writing(driver, "two", "one") as path:
            for name in modes:
                trees.build(f"{path}/{name}/sub", {"new": ""})
        with self.looking(driver, "two") as path:
            for name, mode in modes.items():
                assert stat.S_IMODE(os.stat(f"{path}/{name}").st_mode) == mode
                assert stat.S_IMODE(os.stat(f"{path}/{name}/sub").st_mode) == mode
                assert os.stat(f"{path}/{name}").st_uid == mode % 7

    def test_unix_domain_sockets(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"run": {"stale": Special(type=stat.S_IFSOCK)}})
        with mounted(driver.prepare("key", "one")) as path:
            for name in ("new", "stale"):
                address = f"{path}/run/{name}"
                with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                    if name == "stale":
                        with pytest.raises(ConnectionRefusedError):
                            client.connect(address)
                        os.unlink(address)
                    server.bind(address)
                    server.listen()
                    client.connect(address)
                    peer, _ = server.accept()
                    with peer:
                        client.sendall(b"hello")
                        assert peer.recv(5) == b"hello"

    def test_directory_inodes_are_stable(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"sub": {"f": "1"}}})
        with mounted(driver.prepare("key", "one")) as path:
            names = ("", "dir", "dir/sub")
            before = [os.stat(f"{path}/{name}").st_ino for name in names]
            trees.build(f"{path}/dir/sub", {"new": ""})
            os.chmod(f"{path}/dir", 0o700)
            assert [os.stat(f"{path}/{name}").st_ino for name in names] == before

    def test_inodes_of_open_files_are_stable(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"f": "lower"})
        with mounted(driver.prepare("key", "one")) as path:
            with open(f"{path}/f") as reader:
                before = os.fstat(reader.fileno())
                with open(f"{path}/f", "a") as writer:
                    assert os.fstat(writer.fileno()).st_ino == before.st_ino
                    writer.write(" and upper")
                after = os.stat(f"{path}/f")
                assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
            assert Path(path, "f").read_text() == "lower and upper"

    def test_the_working_directory_keeps_its_name(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"sub": {}}})
        script = (
            "import os; os.chdir('dir/sub'); open('new', 'w').close(); os.chmod('.', 0o700);"
            "os.rename('../sub/new', '../newer'); print(os.getcwd()); os.chdir('..'); print(os.getcwd())"
        )
        with mounted(driver.prepare("key", "one")) as path:
            command = [sys.executable, "-c", script]
            result = subprocess.run(command, cwd=path, capture_output=True, text=True, check=True)
            assert result.stdout.split() == [f"{path}/dir/sub", f"{path}/dir"]

    def test_a_growing_tree_equals_a_plain_directory(self, driver: Snapshotter, tmp_path: Path) -> None:
        """The same random changes in every layer and in one plain directory; each layer is compared as it was."""
        reference = tmp_path / "reference"
        reference.mkdir(mode=0o755)
        parent, states = "", {}
        for number in range(self.compared_layers):
            name = f"layer-{number}"
            with self.writing(driver, name, parent) as path:
                for place in (path, str(reference)):
                    change_at_random(place, random.Random(number))
            states[name] = trees.read(str(reference), times=False)
            parent = name
        for name, state in states.items():
            with self.looking(driver, name) as path:
                trees.assert_same(state, trees.read(path, times=False), f"in {name}")

    def test_a_deep_tree_is_read(self, driver: Snapshotter) -> None:
        """As many layers as images have: each is found, and so is what only the lowest has."""
        parent = ""
        for number in range(self.depth):
            name = f"layer-{number}"
            with self.plain_writing(driver, name, parent) as path:
                if number == 0:
                    trees.build(path, {"base": "base", "shared": {}})
                trees.build(path, {f"in-{number}": {"number": str(number), "parent": parent}})
                trees.build(f"{path}/shared", {f"from-{number}": ""})
                Path(path, "top").write_text(str(number))
            parent = name
        with self.looking(driver, parent) as path:
            assert Path(path, "base").read_text() == "base"
            assert Path(path, "top").read_text() == str(self.depth - 1)
            assert set(os.listdir(f"{path}/shared")) == {f"from-{n}" for n in range(self.depth)}
            assert len(os.listdir(path)) == self.depth + 3
            for number in range(self.depth):
                assert Path(path, f"in-{number}", "number").read_text() == str(number)
        with mounted(driver.prepare("key", parent)) as path:
            with open(f"{path}/in-0/number", "a") as lowest:
                lowest.write("!")
            assert Path(path, "in-0", "number").read_text() == "0!"

    # Several at once.

    def test_one_of_many_processes_commits(self, driver: Snapshotter, root: str) -> None:
        def unpack(number: int) -> None:
            mine = open_driver(self.driver_name, root)
            mounts = mine.prepare(f"key-{number}")
            with mounted(mounts) as path:
                trees.build(path, {"who": str(number)})
            try:
                mine.commit("name", f"key-{number}")
            except AlreadyExists:
                mine.remove(f"key-{number}")
            mine.close()

        children = [in_child(lambda n=number: unpack(n)) for number in range(6)]
        assert [child.wait() for child in children] == [0] * 6
        assert self.names(driver) == {"name"}
        with self.looking(driver, "name") as path:
            assert Path(path, "who").read_text() in set("012345")

    def test_cleanup_leaves_the_work_of_others_alone(self, driver: Snapshotter, root: str) -> None:
        self.layer(driver, "base", {f"f{n}": "x" for n in range(50)})

        def work(number: int) -> None:
            mine = open_driver(self.driver_name, root)
            for turn in range(8):
                mine.prepare(f"key-{number}-{turn}", "base")
                assert os.listdir(os.path.dirname(mine.mounts(f"key-{number}-{turn}")[0].source) or "/")
                if turn % 2:
                    mine.commit(f"name-{number}-{turn}", f"key-{number}-{turn}")
                else:
                    mine.remove(f"key-{number}-{turn}")
            mine.close()

        children = [in_child(lambda n=number: work(n)) for number in range(3)]
        while any(child.is_running() for child in children):
            driver.cleanup()
        assert [child.wait() for child in children] == [0] * 3
        assert self.names(driver) == {"base", *(f"name-{n}-{t}" for n in range(3) for t in (1, 3, 5, 7))}
        driver.check_invariants()  # type: ignore[attr-defined]

    def test_threads_share_a_driver(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"f": "x"})
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(4):
                    driver.prepare(f"key-{number}-{turn}", "base")
                    driver.stat(f"key-{number}-{turn}")
                    list(driver.walk())
                    driver.commit(f"name-{number}-{turn}", f"key-{number}-{turn}")
                    driver.cleanup()
                    driver.remove(f"name-{number}-{turn}")
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert self.names(driver) == {"base"}


def change_at_random(root: str, chance: random.Random) -> None:
    """A few dozen changes that any file system can do; the same for the same state of `chance` and of the tree."""
    for number in range(25):
        everything = sorted(
            os.path.relpath(os.path.join(directory, name), root)
            for directory, directories, files in os.walk(root)
            for name in directories + files
        )
        directories = [".", *(e for e in everything if stat.S_ISDIR(os.lstat(f"{root}/{e}").st_mode))]
        victim = f"{root}/{chance.choice(everything)}" if everything else None
        new = f"{root}/{chance.choice(directories)}/n{chance.randrange(10**6)}-{number}"
        match chance.choice(["file", "file", "directory", "link", "write", "chmod", "delete", "replace", "move"]):
            case "file":
                Path(new).write_bytes(chance.randbytes(chance.randrange(20_000)))
            case "directory":
                os.mkdir(new)
            case "link":
                os.symlink(f"to-{number}", new)
            case "write" if victim and os.path.isfile(victim):
                with open(victim, "r+b") as out:
                    out.seek(chance.randrange(30_000))
                    out.write(b"changed")
            case "chmod" if victim and not os.path.islink(victim):
                os.chmod(victim, chance.choice([0o700, 0o755, 0o1777]))
            case "delete" if victim:
                _delete(victim)
            case "replace" if victim:
                _delete(victim)
                os.mkdir(victim)
            case "move" if victim and not os.path.isdir(victim):
                os.rename(victim, new)


def _delete(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
