"""The writable branch as others find it: nothing in it but what was done through the mount, and nothing of it lost."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.posix.acl import ACCESS, DEFAULT, HANDED_DOWN
from tests.mounting import Union
from tests.trees import Dir, File, HardLink, Special, Symlink, Tree, build, xattrs
from tests.unionfs.inprocess import ROOT, content, create, snapshot, union, walk, write
from unionfs.linux import consts, processes

pytestmark = [pytest.mark.needs("root", "trusted-xattr", "user-xattr")]

LOWER: Tree = {
    "d": Dir({"f": File("f", mode=0o640), "p": Special(mode=0o600), "l": Symlink("f")}, mode=0o750),
    "a": "old", "b": HardLink("a"), "c": HardLink("a"), "e": {},
}  # fmt: skip


def test_the_root_hands_nothing_down_through_the_work_area(tmp_path: Path) -> None:
    """Not its default ACL, which would let others at copies of private files, and not its group."""
    build(str(tmp_path), {"low": LOWER, "up": Dir({}, mode=0o2775, gid=7, xattrs={DEFAULT: HANDED_DOWN})})
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        for name in ("f", "p", "l"):
            fs.setattr(walk(fs, f"d/{name}"), uid=3)
        fs.mkdir(directory, b"new", 0o750, 0, 0)
        fs.mknod(directory, b"fifo", stat.S_IFIFO | 0o640, 0, 0, 0)
        create(fs, directory, b"file")
    modes = {"d": 0o750, "d/f": 0o640, "d/p": 0o600, "d/l": 0o777, "d/new": 0o750, "d/fifo": 0o640, "d/file": 0o644}
    for name, mode in modes.items():
        found = os.lstat(tmp_path / "up" / name)
        assert (oct(stat.S_IMODE(found.st_mode)), found.st_gid) == (oct(mode), 0), name
        assert not {ACCESS, DEFAULT} & xattrs(str(tmp_path / "up" / name)).keys(), name


def test_what_is_made_in_the_root_inherits_from_it(tmp_path: Path) -> None:
    build(str(tmp_path), {"up": Dir({}, mode=0o2775, gid=7, xattrs={DEFAULT: HANDED_DOWN})})
    with union(tmp_path) as fs:
        fs.mkdir(ROOT, b"new", 0o777, 0, 0)
        create(fs, ROOT, b"file")
    made = tmp_path / "up" / "new"
    assert stat.S_IMODE(made.stat().st_mode) & stat.S_ISGID
    assert made.stat().st_gid == (tmp_path / "up" / "file").stat().st_gid == 7
    assert xattrs(str(made))[DEFAULT] == HANDED_DOWN
    assert ACCESS in xattrs(str(tmp_path / "up" / "file"))


def test_the_roots_times_show_only_what_is_done_to_it(tmp_path: Path) -> None:
    """The union's own names in it (work area, pseudo-links, the base of whiteouts) come and go unseen."""
    build(str(tmp_path / "low"), LOWER)
    (tmp_path / "up").mkdir()
    os.utime(tmp_path / "up", ns=(5, 5))
    with union(tmp_path) as fs:
        write(fs, walk(fs, "d/f"), b"new")
        write(fs, walk(fs, "b"), b"new")
        fs.unlink(walk(fs, "d"), b"p")
        fs.mkdir(walk(fs, "e"), b"new", 0o755, 0, 0)
        assert fs.getattr(ROOT).st.st_mtime_ns == 5
    assert (tmp_path / "up").stat().st_mtime_ns == 5
    with union(tmp_path) as fs:
        assert fs.getattr(ROOT).st.st_mtime_ns == 5
        create(fs, ROOT, b"new")
        assert fs.getattr(ROOT).st.st_mtime_ns != 5


@pytest.mark.parametrize("wrong", [None, b"", b"nonsense"], ids=["missing", "empty", "nonsense"])
def test_a_pseudo_link_without_a_count_is_kept(tmp_path: Path, wrong: bytes | None) -> None:
    """As in a layer that was restored without attributes, or mounted by a user who sees others. The key may be all that
    b and c have: how many names there are is not known, and none of their data may go, now or with the next name."""
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        write(fs, walk(fs, "a"), b"new")
    (key,) = (tmp_path / "up" / ".wh..wh.plnk").iterdir()
    os.removexattr(key, "trusted.unionfs.nlink")
    if wrong is not None:
        os.setxattr(key, "trusted.unionfs.nlink", wrong)
    with union(tmp_path) as fs:
        fs.unlink(ROOT, b"a")
    for _ in range(2):
        with union(tmp_path) as fs:
            found = fs.lookup(ROOT, b"b")
            assert found is not None
            assert found.nlink >= 1
            assert content(fs, found.ino) == b"new"
    with union(tmp_path) as fs:
        write(fs, walk(fs, "b"), b"again")
        fs.rename(ROOT, b"b", ROOT, b"moved")
        fs.unlink(ROOT, b"moved")
    with union(tmp_path) as fs:
        assert content(fs, walk(fs, "c")) == b"again"
        assert fs.lookup(ROOT, b"b") is None


def test_a_pseudo_link_whose_names_are_gone_is_swept(tmp_path: Path) -> None:
    """A server was killed between the last name and the key; the count says so."""
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        write(fs, walk(fs, "a"), b"new")
    (key,) = (tmp_path / "up" / ".wh..wh.plnk").iterdir()
    os.setxattr(key, "trusted.unionfs.nlink", b"=0")
    with union(tmp_path):
        assert not key.exists()


def test_mounted_by_a_user_in_between(tmp_path: Path) -> None:
    """In a user namespace our attributes are user.*, and the trusted.* ones of this layer are out of sight. What
    they would say is then not known, and nothing may be deleted for that."""
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        write(fs, walk(fs, "a"), b"new")
        fs.unlink(ROOT, b"a")
        before = snapshot(fs)["b"]
    status = os.waitstatus_to_exitcode(os.waitpid(look_as_a_user(tmp_path), 0)[1])
    if status == NO_USER_NAMESPACES:
        pytest.skip("user namespaces cannot be made")
    assert status == 0
    with union(tmp_path) as fs:
        assert snapshot(fs)["b"] == before


NO_USER_NAMESPACES = 77


def look_as_a_user(base: Path) -> int:
    """The pid of a process that is root of a user namespace alone, and finds b there; 0 is its status then."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        try:
            processes.unshare(consts.CLONE_NEWUSER)
            for name, line in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as table:
                    table.write(line)
        except OSError:
            status = NO_USER_NAMESPACES
        else:
            with union(base) as fs:
                status = 0 if content(fs, walk(fs, "b")) == b"new" else 2
    finally:
        os._exit(status)


@pytest.mark.parametrize("volatile", [False, True])
def test_copies_are_synced_unless_volatile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volatile: bool) -> None:
    """Before they get their names; a file that is asked to be synced is, either way."""
    build(str(tmp_path / "low"), {**LOWER, "t": {"x": "x", "y": "y"}})
    synced: list[int] = []
    for call in ("fsync", "fdatasync"):
        real = getattr(os, call)

        def sync(fd: int, real: Callable[[int], None] = real) -> None:
            synced.append(os.fstat(fd).st_nlink)
            real(fd)

        monkeypatch.setattr(os, call, sync)
    with union(tmp_path, volatile=volatile) as fs:
        write(fs, walk(fs, "d/f"), b"new")
        fs.setattr(walk(fs, "b"), mode=0o600)
        fs.rename(ROOT, b"t", ROOT, b"moved")
        assert synced == ([] if volatile else [0, 0, 0, 0])
        synced.clear()
        file = fs.open(walk(fs, "d/f"), os.O_RDWR)
        fs.fsync(file, False)
        fs.fsync(file, True)
        fs.release(file)
        assert synced == [1, 1]


@pytest.mark.needs("fuse")
def test_trusted_attributes_are_listed_to_root_alone(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """As by other file systems (simple_xattr_list(), fs/xattr.c)."""
    build(str(tmp_path / "low"), {"f": File("f", xattrs={"trusted.secret": b"1", "user.open": b"1"})})
    mounted = mount_union("low", "up")
    fd = os.open(f"{mounted.path}/f", os.O_RDONLY)
    try:
        assert sorted(os.listxattr(fd)) == ["trusted.secret", "user.open"]
        os.seteuid(65534)
        try:
            assert os.listxattr(fd) == ["user.open"]
        finally:
            os.seteuid(0)
    finally:
        os.close(fd)
