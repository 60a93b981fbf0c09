"""Files without a name (O_TMPFILE), which a link may give one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.contracts.posix.acl import ACCESS, DEFAULT, HANDED_DOWN
from tests.contracts.posix.case import fails
from tests.trees import Dir, build
from tests.unionfs.inprocess import ROOT, content, descriptors, known, listing, snapshot, union, walk, write

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]


def test_it_has_no_name_and_goes_with_its_handle(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"d": {"x": "x"}})
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        fs.setattr(directory, mode=0o755)
        assert listing(fs, directory) == [b"x"]
        held, table = descriptors(), known(fs)
        fh, attr = fs.tmpfile(directory, 0o640, 5, 6)
        assert (attr.nlink, attr.st.st_uid, attr.st.st_gid, attr.st.st_size) == (0, 5, 6, 0)
        assert attr.st.st_mode == stat.S_IFREG | 0o640
        fs.write(fh, 0, b"data")
        assert fs.read(fh, 0, 10) == b"data"
        assert content(fs, attr.ino) == b"data"
        assert fs.setattr(attr.ino, size=2, mode=0o600).st.st_size == 2
        fs.setxattr(attr.ino, b"user.a", b"1")
        assert listing(fs, directory) == [b"x"]
        fs.check_invariants()
        fs.release(fh)
        assert fs.getattr(attr.ino).nlink == 0
        fs.forget([(attr.ino, 1)])
        with fails(errno.ESTALE):
            fs.getattr(attr.ino)
        assert known(fs) == table
        assert descriptors() == held
    assert os.listdir(tmp_path / "up" / "d") == []


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("whiteout", [False, True])
def test_a_link_gives_it_a_name(tmp_path: Path, released: bool, whiteout: bool) -> None:
    """Also after its handle was closed, where a lower file had the name, and with attributes set before."""
    build(str(tmp_path / "low"), {"d": {}, "n": "lower"})
    with union(tmp_path) as fs:
        if whiteout:
            fs.unlink(ROOT, b"n")
        name = b"n" if whiteout else b"new"
        fh, attr = fs.tmpfile(walk(fs, "d"), 0o4755, 7, 7)
        fs.write(fh, 0, b"data")
        fs.setxattr(attr.ino, b"trusted.a", b"1")
        if released:
            fs.release(fh)
        linked = fs.link(attr.ino, ROOT, name)
        assert (linked.ino, linked.nlink, linked.st.st_uid) == (attr.ino, 1, 7)
        assert content(fs, walk(fs, os.fsdecode(name))) == b"data"
        assert fs.link(attr.ino, walk(fs, "d"), b"second").nlink == 2
        if not released:
            fs.write(fh, 4, b" more")
            fs.release(fh)
        fs.check_invariants()
        fs.unlink(ROOT, name)
        assert fs.getattr(attr.ino).nlink == 1
        before = snapshot(fs)
    with union(tmp_path) as fs:
        assert snapshot(fs) == before
        assert before["d/second"].xattrs == {"trusted.a": b"1"}
        assert before["d/second"].content == (b"data" if released else b"data more")


def test_a_file_whose_last_name_went_gets_none(tmp_path: Path) -> None:
    """Of files without a name only those that never had one can be linked (vfs_link(), fs/namei.c)."""
    with union(tmp_path) as fs:
        fh, attr = fs.tmpfile(ROOT, 0o600, 0, 0)
        fs.link(attr.ino, ROOT, b"n")
        fs.unlink(ROOT, b"n")
        with fails(errno.ENOENT):
            fs.link(attr.ino, ROOT, b"n")
        assert fs.getattr(attr.ino).nlink == 0
        fs.write(fh, 0, b"still whole")
        assert content(fs, attr.ino) == b"still whole"
        fs.check_invariants()
        fs.release(fh)


def test_where_the_name_is_taken(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"taken": "lower"})
    with union(tmp_path) as fs:
        fh, attr = fs.tmpfile(ROOT, 0o600, 0, 0)
        with fails(errno.EEXIST):
            fs.link(attr.ino, ROOT, b"taken")
        with fails(errno.EPERM):
            fs.link(attr.ino, ROOT, b".wh.n")
        assert fs.getattr(attr.ino).nlink == 0
        fs.release(fh)
        write(fs, walk(fs, "taken"), b"L")
        fs.check_invariants()


def test_it_inherits_as_a_named_file_does(tmp_path: Path) -> None:
    """The group of a set-group-ID directory, and a default ACL in the place of the mode."""
    build(str(tmp_path / "low"), {"d": Dir({}, mode=0o2777, uid=3, gid=9)})
    os.setxattr(tmp_path / "low" / "d", DEFAULT, HANDED_DOWN)
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        fh, attr = fs.tmpfile(directory, 0o666, 5, 5)
        other, named = fs.create(directory, b"n", 0o666, 5, 5)
        assert (attr.st.st_mode, attr.st.st_uid, attr.st.st_gid) == (named.st.st_mode, 5, 9)
        access = ACCESS.encode()
        assert fs.getxattr(attr.ino, access) == fs.getxattr(named.ino, access)
        fs.release(fh)
        fs.release(other)


def test_where_there_is_no_place_for_one(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"f": "", "d": {}})
    with union(tmp_path, upper=None) as fs, fails(errno.EROFS):
        fs.tmpfile(ROOT, 0o600, 0, 0)
    with union(tmp_path) as fs:
        gone = walk(fs, "d")
        fs.rmdir(ROOT, b"d")
        with fails(errno.ENOENT):
            fs.tmpfile(gone, 0o600, 0, 0)
