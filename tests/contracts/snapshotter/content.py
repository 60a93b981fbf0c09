"""What is in a tree is what was written to it, through any number of layers."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.api import Snapshotter
from tests import trees
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted
from tests.trees import Dir, File, HardLink, Special, Symlink


class Content(Words):
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
        contents: dict[str, trees.Tree] = {
            "": {}, "one": {"f": "1", "d": {}}, "two": {"f": "1", "g": "2", "d": {}},
        }  # fmt: skip
        changes: tuple[Callable[[str], None], ...] = (
            lambda path: os.mkdir(f"{path}/new"),
            lambda path: os.chmod(path, 0o700),
            lambda path: os.setxattr(path, "user.x", b""),
            os.utime,
        )
        for parent, expected in contents.items():
            with mounted(driver.view(f"view-{parent}", parent)) as path:
                trees.assert_tree(path, expected)
                for change in changes:
                    with pytest.raises(OSError, match="Read-only") as refused:
                        change(path)
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
            assert os.stat(f"{path}/sparse").st_blocks * 512 <= 1 << 18  # a block or two, where blocks are large
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

    def test_a_new_file_is_moved_over_a_lower_one(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"files": Dir({"f": File("first", mode=0o644), "g": "nothing"}, mode=0o700)})
        with self.writing(driver, "two", "one") as path:
            trees.build(f"{path}/files", {"f-overwrite": File("second", mode=0o750)})
            os.rename(f"{path}/files/f-overwrite", f"{path}/files/f")
            os.rename(f"{path}/files/g", f"{path}/files/h")
        with self.looking(driver, "two") as path:
            trees.assert_tree(path, {"files": {"f": File("second", mode=0o750), "h": "nothing"}})

    def test_a_few_bytes_in_the_middle_of_files(self, driver: Snapshotter) -> None:
        """containerd's benchsuite: layers of equal files, each changed by four bytes in the next one."""
        layers, files, size = self.bulk
        content = {f"file-{number}": bytearray(os.urandom(size)) for number in range(files)}
        self.layer(driver, "layer-0", {name: bytes(data) for name, data in content.items()})
        for number in range(1, layers):
            with self.writing(driver, f"layer-{number}", f"layer-{number - 1}") as path:
                for at, (name, data) in enumerate(content.items()):
                    middle = size // 2 + 4096 * at
                    with open(f"{path}/{name}", "r+b", buffering=0) as file:
                        assert os.pwrite(file.fileno(), b"%04d" % number, middle) == 4
                    data[middle : middle + 4] = b"%04d" % number
        with self.looking(driver, f"layer-{layers - 1}") as path:
            trees.assert_tree(path, {name: bytes(data) for name, data in content.items()})

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
