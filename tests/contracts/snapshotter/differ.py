"""What a snapshot changed is told, written as an archive, and comes to the same tree elsewhere.

The cases are those of containers/storage's graphtest (Changes, Echo, DiffApply), of moby's pkg/archive
(changes_test.go), and of containerd's core/diff and continuity's fs tests.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.api import Snapshotter
from drivers.archive.reader import Entry, Reader
from drivers.diff import apply, changes, diff_size, layer, write_diff
from drivers.diff.snapshots import compared, tree
from drivers.diff.walk import differences
from drivers.mounts.tree import private
from tests import trees
from tests.children import in_child
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted, seen
from tests.trees import Dir, File, Special, Symlink
from unionfs.linux import consts, files, mounts

OLD = 1_000_000_000_000_000_000


def told(driver: Snapshotter, key: str, live: int | None = None) -> list[str]:
    return [f"{change.kind} {os.fsdecode(change.path)}" for change in changes(driver, key, live=live)]


def archived(driver: Snapshotter, key: str, live: int | None = None) -> bytes:
    out = io.BytesIO()
    assert write_diff(driver, key, out.write, live=live) == len(out.getvalue())
    return out.getvalue()


def in_use(driver: Snapshotter, key: str, path: str) -> tuple[list[str], bytes]:
    """Both, of a snapshot that is mounted at `path`."""
    with seen(path) as live:
        return told(driver, key, live), archived(driver, key, live)


def members(archive: bytes) -> list[Entry]:
    return list(Reader(io.BytesIO(archive)))


def by_comparison(driver: Snapshotter, key: str) -> bytes:
    """The archive that comparing the two trees gives, whatever the driver keeps."""
    out = io.BytesIO()
    parent = driver.stat(key).parent
    with tree(driver, key) as new:
        if not parent:
            layer.write(differences(new, None), out.write)
            return out.getvalue()
        with tree(driver, parent) as old:
            layer.write(differences(new, old), out.write)
    return out.getvalue()


class Differ(Words):
    def changed(self, driver: Snapshotter, base: trees.Tree, change: Callable[[str], object]) -> list[str]:
        """What is told of `change` to a tree, before and after it is committed; and the archive makes the same tree."""
        self.layer(driver, "base", base)
        with mounted(driver.prepare("changed", "base")) as path:
            change(path)
            expected = trees.read(path)
            live, archive = in_use(driver, "changed", path)
        with mounted(driver.mounts("changed")) as path:
            trees.assert_same(expected, trees.read(path), "when it is mounted again")
        assert told(driver, "changed") == live
        assert by_comparison(driver, "changed") == archive
        driver.commit("done", "changed")
        with self.looking(driver, "done") as path:
            trees.assert_same(expected, trees.read(path), "after the commit")
        assert told(driver, "done") == live
        assert archived(driver, "done") == archive == by_comparison(driver, "done")
        driver.prepare("copy", "base")
        assert apply(driver, "copy", io.BytesIO(archive)).size == diff_size(driver, "done")
        driver.commit("applied", "copy")
        with self.looking(driver, "applied") as path:
            trees.assert_same(_in_a_layer(expected), trees.read(path), "after applying")
        assert archived(driver, "applied") == archive
        assert [info.name for info in driver.walk()] == ["base", "done", "applied"]
        return live

    def test_changes_of_twenty_files(self, driver: Snapshotter) -> None:
        """graphtest's Changes: every third of 20 files modified, added, removed."""
        base: trees.Tree = {f"dir-{n // 10}": {f"file-{m}": str(m) for m in range(n, n + 10)} for n in (0, 10)}

        def change(path: str) -> None:
            for number in range(20):
                name = f"{path}/dir-{number // 10}/file-{number}"
                if number % 3 == 0:
                    Path(name).write_text("changed")
                elif number % 3 == 1:
                    Path(f"{name}.new").write_text("added")
                else:
                    os.unlink(name)

        expected = ["C /dir-0", "C /dir-1"]
        for number in range(20):
            name = f"/dir-{number // 10}/file-{number}"
            expected.append({0: f"C {name}", 1: f"A {name}.new", 2: f"D {name}"}[number % 3])
        assert self.changed(driver, base, change) == sorted(expected, key=lambda line: line[2:])

    def test_nothing_changed(self, driver: Snapshotter) -> None:
        """Neither by reading, nor by opening for writing, nor by changing and changing back."""
        base: trees.Tree = {"dir": {"f": File("content", mtime_ns=OLD, mode=0o640)}, "link": Symlink(target="f")}

        def change(path: str) -> None:
            Path(path, "dir/f").read_text()
            os.close(os.open(f"{path}/dir/f", os.O_RDWR))
            os.chmod(f"{path}/dir/f", 0o600)
            os.chmod(f"{path}/dir/f", 0o640)
            Path(path, "dir/new").write_text("x")
            os.unlink(f"{path}/dir/new")
            os.chmod(f"{path}/dir", 0o700)
            os.chmod(f"{path}/dir", 0o755)

        assert self.changed(driver, base, change) == []

    def test_a_view_has_no_changes(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"f": "x"})
        driver.view("view", "base")
        assert told(driver, "view") == []
        driver.remove("view")

    def test_a_first_layer_is_added_whole(self, driver: Snapshotter) -> None:
        with self.writing(driver, "base") as path:
            trees.build(path, {"dir": {"f": "x"}, "link": Symlink(target="nowhere")})
            os.chmod(path, 0o750)
            before = trees.read(path)
        assert told(driver, "base") == ["A /dir", "A /dir/f", "A /link"]
        archive = archived(driver, "base")
        assert [entry.name for entry in members(archive)] == [b"./", b"dir/", b"dir/f", b"link"]
        driver.prepare("copy")
        apply(driver, "copy", io.BytesIO(archive))
        with mounted(driver.mounts("copy")) as path:
            trees.assert_same(before, trees.read(path))
        assert archived(driver, "copy") == archive
        driver.remove("copy")

    def test_an_edit_that_hides(self, driver: Snapshotter) -> None:
        """moby#31805: size and time are as they were."""

        def change(path: str) -> None:
            for name in ("f", "dir/g"):
                with open(f"{path}/{name}", "r+") as file:
                    file.write("B")
                os.utime(f"{path}/{name}", ns=(OLD, OLD))

        base: trees.Tree = {
            "f": File("A", mtime_ns=OLD), "dir": {"g": File("A", mtime_ns=OLD), "same": File("A", mtime_ns=OLD)},
        }  # fmt: skip
        assert self.changed(driver, base, change) == ["C /dir", "C /dir/g", "C /f"]

    def test_a_time_is_a_change(self, driver: Snapshotter) -> None:
        base: trees.Tree = {"f": File("x", mtime_ns=OLD), "link": Symlink(target="f", mtime_ns=OLD), "dir": {}}

        def change(path: str) -> None:
            for name in ("f", "link", "dir"):
                os.utime(f"{path}/{name}", ns=(OLD, OLD + 1_000_000_007), follow_symlinks=False)

        assert self.changed(driver, base, change) == ["C /f", "C /link"]

    def test_attributes(self, driver: Snapshotter) -> None:
        acl = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff"
                            "20000400ffffffff")
        capability = bytes.fromhex("0100000200200000000000000000000000000000")
        names = ("mode", "uid", "gid", "xattr", "acl", "capability", "less", "same")
        base: trees.Tree = {name: File("x", mtime_ns=OLD, xattrs={"user.old": b"1"}, mode=0o644) for name in names} | {
            "dir-mode": {}, "dir-uid": {}, "dir-acl": {}, "link": Symlink(target="x"),
            "dir-less": Dir({}, xattrs={"user.old": b"1", "system.posix_acl_default": acl}),
        }  # fmt: skip

        def change(path: str) -> None:
            os.chmod(f"{path}/mode", 0o600)
            os.chown(f"{path}/uid", 1, -1)
            os.chown(f"{path}/gid", -1, 2)
            os.setxattr(f"{path}/xattr", "user.new", b"\0=\n")
            os.setxattr(f"{path}/acl", "system.posix_acl_access", acl)
            os.setxattr(f"{path}/capability", "security.capability", capability)
            os.removexattr(f"{path}/less", "user.old")
            os.chmod(f"{path}/dir-mode", 0o1777)
            os.chown(f"{path}/dir-uid", 70_000, 80_000)
            os.setxattr(f"{path}/dir-acl", "system.posix_acl_default", acl)
            os.removexattr(f"{path}/dir-less", "user.old")
            os.removexattr(f"{path}/dir-less", "system.posix_acl_default")
            os.chown(f"{path}/link", 5, 6, follow_symlinks=False)

        changed = [f"C /{name}" for name in sorted({*base} - {"same"})]
        assert self.changed(driver, base, change) == changed

    def test_the_root_changes(self, driver: Snapshotter) -> None:
        """It is in the archive, and not told, as docker does not tell it."""
        assert self.changed(driver, {"f": "x"}, lambda path: os.chmod(path, 0o711)) == []
        assert [entry.name for entry in members(archived(driver, "done"))] == [b"./"]

    def test_types(self, driver: Snapshotter) -> None:
        """What has taken the place of something else is changed, what it replaced is not told."""
        kinds: dict[str, trees.Entry] = {
            "file": "f", "dir": {"inside": {"f": "x"}}, "link": Symlink(target="inside"), "fifo": Special(mode=0o644),
            "device": Special(type=stat.S_IFCHR, rdev=os.makedev(10, 229), mode=0o600),
            "disk": Special(type=stat.S_IFBLK, rdev=os.makedev(7, 300), mode=0o600),
            "socket": Special(type=stat.S_IFSOCK),
        }  # fmt: skip
        pairs = [(old, new) for old in kinds if old != "socket" for new in kinds if new != old]

        def change(path: str) -> None:
            for old, new in pairs:
                if old == "dir":
                    shutil.rmtree(f"{path}/{old}-{new}")
                else:
                    os.unlink(f"{path}/{old}-{new}")
                trees.build(path, {f"{old}-{new}": kinds[new]})

        expected = []
        for old, new in pairs:
            inside = [f"A /{old}-dir/inside", f"A /{old}-dir/inside/f"] if new == "dir" else []
            expected += [f"C /{old}-{new}", *inside]
        found = self.changed(driver, {f"{old}-{new}": kinds[old] for old, new in pairs}, change)
        assert found == sorted(expected, key=lambda line: line[2:])

    def test_deleted_and_made_again(self, driver: Snapshotter) -> None:
        """What the second directory hides is told, one by one; the archive needs no opaque marker for it."""
        base: trees.Tree = {"dir": {"a": "a", "b": {"c": "c"}, "kept": File("k", mtime_ns=OLD)}, "other": "o"}

        def change(path: str) -> None:
            shutil.rmtree(f"{path}/dir")
            trees.build(path, {"dir": {"kept": File("k", mtime_ns=OLD), "new": "n"}})

        assert self.changed(driver, base, change) == ["C /dir", "D /dir/a", "D /dir/b", "A /dir/new"]
        names = [entry.name for entry in members(archived(driver, "done"))]
        assert names == [b"dir/", b"dir/.wh.a", b"dir/.wh.b", b"dir/new"]

    def test_made_again_with_what_is_in_it(self, driver: Snapshotter) -> None:
        """Only the uppermost directory says that it hides what lay below it: the others are in it."""
        base: trees.Tree = {"dir": {"a": {"b": {"gone": "x", "kept": File("k", mtime_ns=OLD)}, "gone": {"c": "c"}}}}

        def change(path: str) -> None:
            shutil.rmtree(f"{path}/dir")
            trees.build(path, {"dir": {"a": {"b": {"kept": File("k", mtime_ns=OLD)}}}})

        assert self.changed(driver, base, change) == [
            "C /dir", "C /dir/a", "C /dir/a/b", "D /dir/a/b/gone", "D /dir/a/gone",
        ]  # fmt: skip

    def test_a_directory_that_is_deleted_is_one_line(self, driver: Snapshotter) -> None:
        base: trees.Tree = {"a": {"b": {"c": {"d": "x"}}}, "z": ""}
        assert self.changed(driver, base, lambda path: shutil.rmtree(f"{path}/a/b")) == ["C /a", "D /a/b"]

    def test_whiteouts_come_before_their_siblings(self, driver: Snapshotter) -> None:
        def change(path: str) -> None:
            os.unlink(f"{path}/dir/m")
            trees.build(f"{path}/dir", {"!": "x", "sub": {"f": "x"}})

        expected = ["C /dir", "A /dir/!", "D /dir/m", "A /dir/sub", "A /dir/sub/f"]
        assert self.changed(driver, {"dir": {"m": "x", "z": "x"}}, change) == expected
        names = [entry.name for entry in members(archived(driver, "done"))]
        assert names == [b"dir/", b"dir/.wh.m", b"dir/!", b"dir/sub/", b"dir/sub/f"]

    def test_names_as_long_as_can_be(self, driver: Snapshotter) -> None:
        """What says of such a name that it is gone is longer than a name can be: in an archive that is no matter."""
        names = ["k" * 251, "l" * 252, 127 * "ä" + "n", "€" * 85]
        base: trees.Tree = {
            "again": {name: {"gone": "x"} for name in names}, "d": {name: {name: "x"} for name in names},
            "f": {name: name for name in names}, "moved": {name: name for name in names},
        }  # fmt: skip

        def change(path: str) -> None:
            for number, name in enumerate(names):
                shutil.rmtree(f"{path}/again/{name}")
                os.mkdir(f"{path}/again/{name}")
                shutil.rmtree(f"{path}/d/{name}")
                os.unlink(f"{path}/f/{name}")
                os.rename(f"{path}/moved/{name}", f"{path}/moved/{number}")
                trees.build(path, {f"new-{number}": {name: name}})
                Path(path, "new-file" + name[8:]).write_text("x")
                os.unlink(f"{path}/new-file{name[8:]}")

        expected = []
        for name in sorted(names):
            expected += [f"C /again/{name}", f"D /again/{name}/gone", f"D /d/{name}", f"D /f/{name}"]
            expected += [f"D /moved/{name}"]
        for number, name in enumerate(names):
            expected += [f"A /moved/{number}", f"A /new-{number}", f"A /new-{number}/{name}"]
        expected += ["C /again", "C /d", "C /f", "C /moved"]
        assert sorted(self.changed(driver, base, change)) == sorted(expected)
        archive = {entry.name for entry in members(archived(driver, "done"))}
        assert {b"f/.wh." + name.encode() for name in names} <= archive

    @pytest.mark.parametrize("depth", [1, 9])
    def test_echo_is_told(self, driver: Snapshotter, depth: int) -> None:
        """graphtest's Echo: a subtree is deleted in one layer, and made again in the next."""
        inner: dict[str, trees.Entry] = {"end": "x"}
        for level in range(10, 0, -1):
            inner = {f"d{level}": inner, f"f{level}": "x"}
        where = "/".join(f"d{level}" for level in range(1, depth + 1))
        above = ["/" + "/".join(f"d{n}" for n in range(1, level + 1)) for level in range(1, depth)]
        self.layer(driver, "one", inner)
        with self.writing(driver, "two", "one") as path:
            shutil.rmtree(f"{path}/{where}")
        with self.writing(driver, "three", "two") as path:
            trees.build(f"{path}/{where}", {"echo": "x", "end": {}})
        assert told(driver, "two") == [*(f"C {path}" for path in above), f"D /{where}"]
        added = [f"A /{where}", f"A /{where}/echo", f"A /{where}/end"]
        assert told(driver, "three") == [*(f"C {path}" for path in above), *added]
        driver.prepare("copy-2", "one")
        apply(driver, "copy-2", io.BytesIO(archived(driver, "two")))
        driver.commit("copied-2", "copy-2")
        driver.prepare("copy-3", "copied-2")
        apply(driver, "copy-3", io.BytesIO(archived(driver, "three")))
        with self.looking(driver, "three") as path:
            expected = trees.read(path)
        with mounted(driver.mounts("copy-3")) as path:
            trees.assert_same(expected, trees.read(path))
        driver.remove("copy-3")

    def test_hard_links(self, driver: Snapshotter) -> None:
        """Across directories; a new name of an old file stays a name of it; the first of the names has the content."""
        self.layer(driver, "below", {"x": "x"})
        with self.writing(driver, "base", "below") as path:
            trees.build(path, {"d": {"old": File("old", mtime_ns=OLD)}, "e": {"one": File("1", mtime_ns=OLD)}})
            os.link(f"{path}/e/one", f"{path}/e/two")
            os.link(f"{path}/e/one", f"{path}/d/three")
        with mounted(driver.prepare("active", "base")) as path:
            os.link(f"{path}/d/old", f"{path}/e/new")
            trees.build(path, {"a": {"z": "links"}, "b": {}})
            os.link(f"{path}/a/z", f"{path}/b/y")
            os.link(f"{path}/a/z", f"{path}/a/x")
            os.symlink("target", f"{path}/b/s")
            os.link(f"{path}/b/s", f"{path}/b/t", follow_symlinks=False)
            expected = trees.read(path)
        archive = archived(driver, "active")
        links = {entry.name: entry.linkname for entry in members(archive) if entry.kind.value == b"1"}
        assert links == {b"d/old": b"e/new", b"a/z": b"a/x", b"b/y": b"a/x", b"b/t": b"b/s"}
        assert archive == by_comparison(driver, "active")
        assert "C /d/old" not in told(driver, "active")
        driver.prepare("copy", "base")
        apply(driver, "copy", io.BytesIO(archive))
        with mounted(driver.mounts("copy")) as path:
            trees.assert_same(expected, trees.read(path))
        driver.remove("copy")
        driver.remove("active")

    def test_who_is_killed_while_he_looks_or_writes(self, driver: Snapshotter, root: str) -> None:
        """Nothing is mounted anywhere, and the snapshot can be removed at once: what was held ended with who held it.
        The view of the parent is taken back by the next who compares."""
        self.layer(driver, "base", {"f": "x", "d": {"g": "y"}})
        self.layer(driver, "top", {"h": "z"}, "base")
        table = mounts.mountinfo()

        def comparing(mine: Snapshotter) -> AbstractContextManager[object]:
            return compared(mine, "active")

        def reading(mine: Snapshotter) -> AbstractContextManager[object]:
            return tree(mine, "active")

        def reading_a_layer(mine: Snapshotter) -> AbstractContextManager[object]:
            return tree(mine, "top")

        def writing(mine: Snapshotter) -> AbstractContextManager[object]:
            return private(mine.mounts("active"))

        for way in (comparing, reading, reading_a_layer, writing):
            driver.prepare("active", "top")
            reader, writer = os.pipe()

            def hang(way: Callable[[Snapshotter], AbstractContextManager[object]] = way, writer: int = writer) -> None:
                with way(self.open(root)):
                    os.write(writer, b"x")
                    signal.pause()

            child = in_child(hang)
            os.close(writer)
            assert os.read(reader, 1) == b"x", way.__name__
            os.close(reader)
            assert mounts.mountinfo() == table, way.__name__
            os.kill(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            assert mounts.mountinfo() == table, way.__name__
            driver.remove("active")
            assert told(driver, "top") == ["A /h"]
            assert self.names(driver) == {"base", "top"}, way.__name__

    def test_a_lower_file_of_several_names_is_changed(self, driver: Snapshotter) -> None:
        """Told under each name that shows it, and applied to each: a driver may break such links, or keep them."""
        with self.writing(driver, "base") as path:
            trees.build(path, {"a": {"one": "1"}, "b": {}, "c": {}})
            for name in ("b/two", "c/three"):
                os.link(f"{path}/a/one", f"{path}/{name}")
        with mounted(driver.prepare("active", "base")) as path:
            Path(path, "b/two").write_text("changed")
            os.unlink(f"{path}/c/three")
            expected = trees.read(path)
            shown = [f"C /{name}" for name in ("a/one", "b/two") if Path(path, name).read_text() == "changed"]
            live, archive = in_use(driver, "active", path)
        assert [line for line in live if line.count("/") == 2] == [*shown, "D /c/three"]
        assert archived(driver, "active") == archive
        driver.prepare("copy", "base")
        apply(driver, "copy", io.BytesIO(archive))
        with mounted(driver.mounts("copy")) as path:
            found = trees.read(path)
            assert {name: entry.content for name, entry in found.items()} == {
                name: entry.content for name, entry in expected.items()
            }
        driver.remove("copy")
        driver.remove("active")

    def test_a_socket_that_took_a_place(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"dir": {"f": "x"}})
        with self.writing(driver, "layer", "base") as path:
            os.unlink(f"{path}/dir/f")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"{path}/dir/f")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"{path}/dir/g")
        assert told(driver, "layer") == ["C /dir", "C /dir/f", "A /dir/g"]
        assert [entry.name for entry in members(archived(driver, "layer"))] == [b"dir/", b"dir/.wh.f"]

    @pytest.mark.parametrize("user", [0, 65534])
    def test_what_a_container_may_write_is_no_mark(self, driver: Snapshotter, user: int) -> None:
        """In no form. What a driver refuses is not there, and of the rest a layer has what it can: no `.wh.` names, no
        devices 0:0, no attributes that are marks of a union elsewhere."""
        base: trees.Tree = {
            "d": Dir({"a": "a", "b": "b", "sub": Dir({"x": "x"}, uid=user)}, uid=user),
            "e": Dir({"moved": File("moved", uid=user), "y": "y"}, uid=user),
        }  # fmt: skip

        def change(path: str) -> None:
            with _as_user(path, user):
                for place in ("d", "d/sub", "e"):
                    for attribute in ("overlay", "unionfs", "fuseoverlayfs"):
                        with suppress(OSError):
                            os.setxattr(place, f"user.{attribute}.opaque", b"y")
                    for name in (".wh..wh..opq", ".wh.a", ".wh.x", ".wh..wh.aufs"):
                        with suppress(OSError):
                            Path(place, name).touch()
                    with suppress(OSError):
                        os.mkdir(f"{place}/.wh..wh.plnk")
                    with suppress(OSError):
                        os.setxattr(f"{place}/y", "user.overlay.whiteout", b"")
                    with suppress(OSError):  # nobody needs a capability for this one (vfs_mknod(), fs/namei.c)
                        os.mknod(f"{place}/whiteout", stat.S_IFCHR, os.makedev(0, 0))
                with suppress(OSError):
                    files.renameat2(-100, b"e/moved", -100, b"e/there", consts.RENAME_WHITEOUT)
                Path("d/new").touch()

        found = self.changed(driver, base, change)
        lost = [line for line in found if line.startswith("D")]
        assert lost in ([], ["D /e/moved"]) and {"C /d", "A /d/new"} <= {*found}

    def test_diff_and_apply(self, driver: Snapshotter) -> None:
        """graphtest's DiffApply: among many files, one and a directory are deleted; sizes agree."""
        self.layer(driver, "base", {"many": {f"f{n}": "x" * n for n in range(100)}, "gone": {"a": "a"}})
        with self.writing(driver, "upper", "base") as path:
            os.unlink(f"{path}/many/f7")
            shutil.rmtree(f"{path}/gone")
            trees.build(path, {"more": {f"g{n}": "y" * n for n in range(100)}})
        driver.prepare("copy", "base")
        done = apply(driver, "copy", io.BytesIO(archived(driver, "upper")))
        assert done.size == diff_size(driver, "upper") == sum(range(100))
        with self.looking(driver, "upper") as path:
            expected = trees.read(path)
        with mounted(driver.mounts("copy")) as path:
            trees.assert_same(expected, trees.read(path))
        driver.remove("copy")


@contextmanager
def _as_user(path: str, user: int) -> Iterator[None]:
    """In the directory `path`, with the rights of `user`."""
    here = os.open(".", os.O_PATH)
    os.chdir(path)
    try:
        os.seteuid(user)
        yield
    finally:
        os.seteuid(0)
        os.fchdir(here)
        os.close(here)


_MARKS = ("user.overlay.", "user.unionfs.", "user.fuseoverlayfs.")


def _in_a_layer(found: dict[str, trees.Found]) -> dict[str, trees.Found]:
    """What of a tree a layer's archive can say."""
    return {
        name: replace(entry, xattrs={k: v for k, v in (entry.xattrs or {}).items() if not k.startswith(_MARKS)})
        for name, entry in found.items()
        if entry.type != stat.S_IFSOCK
        and not (entry.type == stat.S_IFCHR and entry.rdev == 0)
        and not any(part.startswith(".wh.") for part in name.split("/"))
    }
