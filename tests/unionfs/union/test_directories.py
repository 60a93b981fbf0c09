"""Directories of lower branches are renamed, exchanged and replaced as any others, and the layer stays plain AUFS."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.posix.case import content, fails, opened, put
from tests.mounting import Union
from tests.trees import Dir, Entry, File, HardLink, Symlink, Tree, assert_tree, build, read
from unionfs.linux import consts, files

pytestmark = [pytest.mark.needs("fuse", "trusted-xattr")]

OPAQUE = ".wh..wh..opq"
DEEP: Tree = {"a": "low", "b": File("low", mode=0o600, uid=3), "l": Symlink("a"), "h": HardLink("a"),
              "s": Dir({"x": "low", "t": {"y": "low"}}, mode=0o2750, gid=4), "empty": {}}
LOWER: Tree = {"d": Dir(DEEP, mode=0o1770, uid=5), "e": {}, "full": {"k": "low"}, "f": "low f"}


@pytest.fixture
def union(mount_union: Callable[..., Union], tmp_path: Path) -> Union:
    build(str(tmp_path / "low"), LOWER)
    return mount_union("low", "up")


def rename2(old: str, new: str, flags: int) -> None:
    files.renameat2(consts.AT_FDCWD, os.fsencode(old), consts.AT_FDCWD, os.fsencode(new), flags)


def numbers(path: str) -> dict[str, int]:
    return {name: os.lstat(os.path.join(path, name)).st_ino for name in read(path)}


def raw(union: Union) -> set[str]:
    """The names in the upper branch that are part of the layer."""
    return {name for name in read(union.upper) if name.split("/")[0] not in (".", ".wh..wh.orph", ".wh..wh.plnk",
                                                                             ".wh..wh.aufs")}


def check(union: Union, tree: Tree) -> None:
    """The union shows `tree`, now and after a remount, and the lower branch is untouched."""
    low = union.branches[0]
    assert_tree(union.path, tree)
    union.remount()
    assert_tree(union.path, tree)
    assert_tree(low, LOWER)


def without(*names: str) -> dict[str, Entry]:
    return {name: value for name, value in LOWER.items() if name not in names}


def test_rename_a_lower_directory(union: Union) -> None:
    """With all that is in it, numbers too; the old name is whited out and the new one hides nothing."""
    inodes = numbers(f"{union.path}/d")
    os.rename(f"{union.path}/d", f"{union.path}/n")
    assert numbers(f"{union.path}/n") == inodes
    check(union, {**without("d"), "n": LOWER["d"]})
    assert numbers(f"{union.path}/n") == inodes
    below = {"n", "n/a", "n/b", "n/l", "n/h", "n/s", "n/s/x", "n/s/t", "n/s/t/y", "n/empty", ".wh.d"}
    assert {name for name in raw(union) if OPAQUE not in name} == below


def test_rename_a_merged_directory(union: Union) -> None:
    put(f"{union.path}/d/new", b"up")
    os.unlink(f"{union.path}/d/a")
    put(f"{union.path}/d/s/x", b"up")
    os.rename(f"{union.path}/d/s/t", f"{union.path}/d/t")
    union.remount()
    os.rename(f"{union.path}/d", f"{union.path}/e/n")
    moved = {"new": "up", "b": DEEP["b"], "l": Symlink("a"), "h": "low", "empty": {}, "t": {"y": "low"},
             "s": Dir({"x": "up"}, mode=0o2750, gid=4)}
    check(union, {**without("d", "e"), "e": {"n": Dir(moved, mode=0o1770, uid=5)}})


def test_rename_back(union: Union) -> None:
    """A whiteout of the old name does not get in the way of coming back, and the lower content does not double."""
    inodes = numbers(f"{union.path}/d")
    os.rename(f"{union.path}/d", f"{union.path}/n")
    os.rename(f"{union.path}/n", f"{union.path}/d")
    assert numbers(f"{union.path}/d") == inodes
    check(union, LOWER)
    os.unlink(f"{union.path}/d/a")
    assert not os.path.exists(f"{union.path}/d/a")
    assert ".wh.d" not in raw(union)


def test_rename_onto_an_empty_merged_directory(union: Union) -> None:
    """`full` is emptied first: its whiteouts must neither survive in the new directory nor show what they hid."""
    os.unlink(f"{union.path}/full/k")
    os.rename(f"{union.path}/d", f"{union.path}/full")
    check(union, {**without("d", "full"), "full": LOWER["d"]})
    with fails(errno.ENOENT):
        os.stat(f"{union.path}/full/k")
    with fails(errno.ENOTEMPTY):
        os.rename(f"{union.path}/e", f"{union.path}/full")


def test_rename_over_a_whiteout_of_a_directory(union: Union) -> None:
    shutil.rmtree(f"{union.path}/d")
    os.rename(f"{union.path}/full", f"{union.path}/d")
    check(union, {"e": {}, "f": "low f", "d": {"k": "low"}})
    assert {".wh.full", "d", "d/k", f"d/{OPAQUE}"} == raw(union)


def test_rename_an_upper_directory_over_a_lower_name(union: Union) -> None:
    """A new directory moved to where a lower one was, or is empty, shows only its own content."""
    os.mkdir(f"{union.path}/n")
    put(f"{union.path}/n/q", b"up")
    os.rename(f"{union.path}/n", f"{union.path}/e")
    os.mkdir(f"{union.path}/n")
    put(f"{union.path}/n/r", b"up")
    os.rename(f"{union.path}/d", f"{union.path}/gone")
    os.rename(f"{union.path}/n", f"{union.path}/d")
    check(union, {"e": {"q": "up"}, "d": {"r": "up"}, "gone": LOWER["d"], "f": "low f", "full": {"k": "low"}})


def test_exchange_directories(union: Union) -> None:
    inodes = {name: os.stat(f"{union.path}/{name}").st_ino for name in ("d", "full", "f")}
    rename2(f"{union.path}/d", f"{union.path}/full", consts.RENAME_EXCHANGE)
    assert os.stat(f"{union.path}/d").st_ino == inodes["full"]
    check(union, {"d": {"k": "low"}, "full": LOWER["d"], "e": {}, "f": "low f"})
    rename2(f"{union.path}/f", f"{union.path}/full", consts.RENAME_EXCHANGE)
    assert os.stat(f"{union.path}/f").st_ino == inodes["d"]
    check(union, {"d": {"k": "low"}, "full": "low f", "e": {}, "f": LOWER["d"]})
    rename2(f"{union.path}/f/s/t", f"{union.path}/e", consts.RENAME_EXCHANGE)
    assert content(f"{union.path}/e/y") == b"low"
    assert os.listdir(f"{union.path}/f/s/t") == []


def test_open_files_and_directories_move_along(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    union = mount_union("low", "up", options=("posix",))  # a reader from before the copy-up is to see what is written
    with (
        opened(f"{union.path}/d/s/x", os.O_RDONLY) as reader,
        opened(f"{union.path}/d/s", os.O_RDONLY | os.O_DIRECTORY) as directory,
        opened(f"{union.path}/d/b", os.O_RDWR) as writer,
    ):
        os.rename(f"{union.path}/d", f"{union.path}/n")
        put(f"{union.path}/n/s/x", b"LOW", 0)
        os.pwrite(writer, b"LOW", 0)
        assert os.pread(reader, 10, 0) == b"LOW"
        assert sorted(os.listdir(directory)) == ["t", "x"]
        os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    assert content(f"{union.path}/n/b") == b"LOW"
    assert os.path.exists(f"{union.path}/n/s/made")


def test_rename_a_directory_of_a_middle_branch(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Three branches hold parts of it, one hides another's."""
    build(str(tmp_path / "bottom"), {"d": {"a": "0", "b": "0", "s": {"p": "0"}}})
    build(str(tmp_path / "middle"), {"d": {".wh.a": "", "c": "1", "s": {OPAQUE: "", "q": "1"}}})
    build(str(tmp_path / "up"), {"d": {".wh.b": "", "t": {"u": "2"}}})
    union = mount_union("bottom", "middle", "up")
    tree: Tree = {"c": "1", "s": {"q": "1"}, "t": {"u": "2"}}
    assert_tree(union.path, {"d": tree})
    os.rename(f"{union.path}/d", f"{union.path}/n")
    assert_tree(union.path, {"n": tree})
    union.remount()
    assert_tree(union.path, {"n": tree})
    os.mkdir(f"{union.path}/d")
    assert os.listdir(f"{union.path}/d") == []


def test_a_directory_made_again_is_new(union: Union) -> None:
    """Removed and made again, many times: nothing of the lower one returns, at any depth."""
    for turn in range(3):
        shutil.rmtree(f"{union.path}/d")
        os.makedirs(f"{union.path}/d/s/t")
        assert_tree(f"{union.path}/d", {"s": {"t": {}}})
        put(f"{union.path}/d/s/t/{turn}", b"")
    check(union, {**without("d"), "d": {"s": {"t": {"2": ""}}}})


def test_errors_change_nothing(union: Union) -> None:
    attempts = {
        errno.ENOTEMPTY: ("d", "full", 0), errno.ENOTDIR: ("d", "f", 0), errno.EISDIR: ("f", "d", 0),
        errno.EINVAL: ("d", "d/s/n", 0), errno.EEXIST: ("d", "e", consts.RENAME_NOREPLACE),
        errno.ENOENT: ("d", "n", consts.RENAME_EXCHANGE),
    }
    for code, (old, new, flags) in attempts.items():
        with fails(code):
            rename2(f"{union.path}/{old}", f"{union.path}/{new}", flags)
    check(union, LOWER)
    assert raw(union) == set(), "a rename that is refused copies nothing up"
