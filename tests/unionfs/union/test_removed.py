"""A removed directory that somebody is in is the union's own: nothing done to it reaches a lower branch."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.mounting import Union
from tests.trees import Dir, Tree, assert_same, build, read
from tests.unionfs.inprocess import ROOT, create, listing, union, walk
from unionfs.union.fs import UnionFs

LOWER: Tree = {"d": Dir({}, mode=0o755, uid=5, xattrs={"user.k": b"1"}), "s": Dir({}, mode=0o700)}

REMOVALS: dict[str, Callable[[UnionFs], None]] = {
    "rmdir": lambda fs: fs.rmdir(ROOT, b"d"),
    "replaced by a lower directory": lambda fs: fs.rename(ROOT, b"s", ROOT, b"d"),
    "replaced by a new directory": lambda fs: fs.rename(
        ROOT, b"new" if fs.mkdir(ROOT, b"new", 0o755, 0, 0) else b"", ROOT, b"d"
    ),
}


@pytest.mark.needs("root", "trusted-xattr", "user-xattr")
@pytest.mark.parametrize("name", REMOVALS)
@pytest.mark.parametrize("copied", [False, True], ids=["lower only", "copied up"])
def test_changes_of_a_removed_directory(tmp_path: Path, name: str, copied: bool) -> None:
    build(str(tmp_path / "low"), LOWER)
    before = read(str(tmp_path / "low"))
    with union(tmp_path) as fs:
        held = walk(fs, "d")
        if copied:
            fs.setxattr(held, b"user.other", b"1")
        REMOVALS[name](fs)
        fs.setattr(held, mode=0o777, uid=1234, mtime_ns=5)
        fs.setxattr(held, b"user.evil", b"1")
        fs.removexattr(held, b"user.k")
        st = fs.getattr(held).st
        assert (st.st_mode & 0o7777, st.st_uid, st.st_mtime_ns) == (0o777, 1234, 5)
        assert fs.getxattr(held, b"user.evil") == b"1"
        assert listing(fs, held) == []
        with fails(errno.ENOENT):
            create(fs, held, b"new")
        with fails(errno.ENOENT):
            fs.mkdir(held, b"new", 0o755, 0, 0)
        found = fs.lookup(ROOT, b"d")
        assert (found is None) == (name == "rmdir")
        assert found is None or (found.ino != held and found.st.st_uid == 0)
        fs.check_invariants()
    assert_same(before, read(str(tmp_path / "low")), "of the lower branch")


@pytest.mark.needs("fuse", "trusted-xattr", "user-xattr")
def test_a_removed_working_directory(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    before = read(str(tmp_path / "low"))
    mounted = mount_union("low", "up")
    fd = os.open(f"{mounted.path}/d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(f"{mounted.path}/d")
        os.fchmod(fd, 0o777)
        os.fchown(fd, 1234, 1234)
        os.setxattr(fd, "user.evil", b"1")
        assert os.fstat(fd).st_uid == 1234
        assert os.listdir(fd) == []
    finally:
        os.close(fd)
    assert_same(before, read(str(tmp_path / "low")), "of the lower branch")


@pytest.mark.needs("root", "trusted-xattr")
@pytest.mark.parametrize("below", ["a file", "a directory"])
def test_what_a_bare_directory_hid(tmp_path: Path, below: str) -> None:
    """A directory with nothing in it, not even a marker, may still lie over something."""
    build(str(tmp_path / "low"), {"d": "low" if below == "a file" else {"x": "low"}})
    build(str(tmp_path / "up"), {"d": Dir({}, xattrs={} if below == "a file" else {"trusted.overlay.opaque": b"y"})})
    with union(tmp_path) as fs:
        assert listing(fs, walk(fs, "d")) == []
        fs.rmdir(ROOT, b"d")
        assert listing(fs) == []
        fs.check_invariants()
    with union(tmp_path) as fs:
        assert listing(fs) == []
