"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os

from tests.contracts.posix.case import case, content, fails, opened, put
from tests.trees import Dir, File, HardLink, Special, Symlink, Tree
from unionfs.linux import consts, files

TREE: Tree = {"file": "f", "other": "o", "empty": {}, "full": {"inside": "i", "sub": {"deep": "d"}}, "full2": {"x": ""}}


def rename2(old: str, new: str, flags: int) -> None:
    files.renameat2(consts.AT_FDCWD, os.fsencode(old), consts.AT_FDCWD, os.fsencode(new), flags)


@case({"file": File("data", mode=0o640, mtime_ns=10**18), "dir": {}})
def rename_a_file(root: str) -> None:
    before = os.stat(f"{root}/file")
    os.rename(f"{root}/file", f"{root}/new")
    os.rename(f"{root}/new", f"{root}/dir/new")
    assert os.listdir(root) == ["dir"]
    with fails(errno.ENOENT):
        os.stat(f"{root}/file")
    after = os.stat(f"{root}/dir/new")
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert content(f"{root}/dir/new") == b"data"
    os.rename(f"{root}/dir/new", f"{root}/file")
    assert content(f"{root}/file") == b"data"
    assert os.listdir(f"{root}/dir") == []


@case(TREE)
def rename_over_a_file(root: str) -> None:
    with opened(f"{root}/other", os.O_RDONLY) as fd:
        os.rename(f"{root}/file", f"{root}/other")
        assert content(f"{root}/other") == b"f"
        assert os.pread(fd, 10, 0) == b"o"
        assert os.fstat(fd).st_nlink == 0
    assert sorted(os.listdir(root)) == ["empty", "full", "full2", "other"]
    put(f"{root}/file", b"again")
    assert content(f"{root}/file") == b"again"
    assert content(f"{root}/other") == b"f"


@case(TREE)
def rename_errors(root: str) -> None:
    with fails(errno.EISDIR):
        os.rename(f"{root}/file", f"{root}/empty")
    with fails(errno.ENOTDIR):
        os.rename(f"{root}/empty", f"{root}/file")
    with fails(errno.ENOTEMPTY):
        os.rename(f"{root}/empty", f"{root}/full")
    with fails(errno.EINVAL):
        os.rename(f"{root}/full", f"{root}/full/sub/new")
    with fails(errno.ENOTEMPTY):
        os.rename(f"{root}/full/sub", f"{root}/full")
    with fails(errno.ENOENT):
        os.rename(f"{root}/missing", f"{root}/new")
    with fails(errno.ENOENT):
        os.rename(f"{root}/file", f"{root}/missing/new")
    with fails(errno.ENOTDIR):
        os.rename(f"{root}/file", f"{root}/other/new")
    assert sorted(os.listdir(root)) == sorted(TREE)


@case(TREE)
def rename_a_directory(root: str) -> None:
    ino = os.stat(f"{root}/full").st_ino
    os.rename(f"{root}/full", f"{root}/new-dir")
    assert os.stat(f"{root}/new-dir").st_ino == ino
    assert content(f"{root}/new-dir/inside") == b"i"
    assert content(f"{root}/new-dir/sub/deep") == b"d"
    assert sorted(os.listdir(f"{root}/new-dir")) == ["inside", "sub"]
    with fails(errno.ENOENT):
        os.stat(f"{root}/full/inside")
    os.mkdir(f"{root}/full")
    assert os.listdir(f"{root}/full") == [], "the old content shows through a new directory of the old name"
    os.unlink(f"{root}/new-dir/inside")
    put(f"{root}/new-dir/sub/deep", b"changed")
    os.rename(f"{root}/new-dir", f"{root}/empty")
    assert os.listdir(f"{root}/empty") == ["sub"]
    assert content(f"{root}/empty/sub/deep") == b"changed"


@case(TREE)
def rename_a_directory_over_an_empty_one(root: str) -> None:
    os.rename(f"{root}/full", f"{root}/empty")
    assert sorted(os.listdir(f"{root}/empty")) == ["inside", "sub"]
    assert sorted(os.listdir(root)) == ["empty", "file", "full2", "other"]


@case(TREE)
def rename_a_directory_into_another(root: str) -> None:
    os.rename(f"{root}/full", f"{root}/full2/moved")
    assert content(f"{root}/full2/moved/sub/deep") == b"d"
    assert sorted(os.listdir(f"{root}/full2")) == ["moved", "x"]
    os.rename(f"{root}/full2/moved/sub", f"{root}/full")
    assert os.listdir(f"{root}/full") == ["deep"]
    assert os.listdir(f"{root}/full2/moved") == ["inside"]


@case({"emptied": {"a": "", "b": {}}, "dir": {"x": "1"}})
def rename_over_a_directory_that_was_emptied(root: str) -> None:
    os.unlink(f"{root}/emptied/a")
    os.rmdir(f"{root}/emptied/b")
    os.rename(f"{root}/dir", f"{root}/emptied")
    assert os.listdir(root) == ["emptied"]
    assert os.listdir(f"{root}/emptied") == ["x"]


@case(TREE)
def rename_without_replacing(root: str) -> None:
    for old, new in (("file", "other"), ("file", "empty"), ("empty", "file"), ("empty", "full"), ("file", "file")):
        with fails(errno.EEXIST):
            rename2(f"{root}/{old}", f"{root}/{new}", consts.RENAME_NOREPLACE)
    rename2(f"{root}/file", f"{root}/new", consts.RENAME_NOREPLACE)
    rename2(f"{root}/full", f"{root}/new-dir", consts.RENAME_NOREPLACE)
    assert content(f"{root}/new") == b"f"
    assert content(f"{root}/new-dir/sub/deep") == b"d"


@case(TREE)
def exchange(root: str) -> None:
    numbers = {name: os.stat(f"{root}/{name}").st_ino for name in TREE}
    rename2(f"{root}/file", f"{root}/other", consts.RENAME_EXCHANGE)
    assert (content(f"{root}/file"), content(f"{root}/other")) == (b"o", b"f")
    rename2(f"{root}/file", f"{root}/full", consts.RENAME_EXCHANGE)
    assert content(f"{root}/full") == b"o"
    assert content(f"{root}/file/sub/deep") == b"d"
    rename2(f"{root}/file", f"{root}/empty", consts.RENAME_EXCHANGE)
    assert os.listdir(f"{root}/file") == []
    assert sorted(os.listdir(f"{root}/empty")) == ["inside", "sub"]
    assert sorted(os.listdir(root)) == sorted(TREE)
    now = {name: os.stat(f"{root}/{name}").st_ino for name in TREE}
    moved = {"other": "file", "full": "other", "empty": "full", "file": "empty", "full2": "full2"}
    assert now == {name: numbers[origin] for name, origin in moved.items()}


@case(TREE)
def exchange_errors(root: str) -> None:
    with fails(errno.ENOENT):
        rename2(f"{root}/file", f"{root}/new", consts.RENAME_EXCHANGE)
    with fails(errno.ENOENT):
        rename2(f"{root}/new", f"{root}/file", consts.RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        rename2(f"{root}/full", f"{root}/full/sub", consts.RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        rename2(f"{root}/file", f"{root}/other", consts.RENAME_EXCHANGE | consts.RENAME_NOREPLACE)
    assert sorted(os.listdir(root)) == sorted(TREE)


@case({"a": "x", "b": HardLink("a"), "dir": {}})
def rename_between_two_names_of_one_file(root: str) -> None:
    """rename(2): if both are links to the same file it does nothing and succeeds."""
    os.rename(f"{root}/a", f"{root}/b")
    assert sorted(os.listdir(root)) == ["a", "b", "dir"]
    os.rename(f"{root}/a", f"{root}/a")
    os.rename(f"{root}/dir", f"{root}/dir")
    os.rename(f"{root}/a", f"{root}/dir/a")
    assert os.stat(f"{root}/b").st_ino == os.stat(f"{root}/dir/a").st_ino
    assert os.stat(f"{root}/b").st_nlink == 2


@case({"link": Symlink("x"), "fifo": Special(), "dir": Dir({}, mode=0o1777)})
def rename_other_types(root: str) -> None:
    for name in ("link", "fifo", "dir"):
        before = os.lstat(f"{root}/{name}")
        os.rename(f"{root}/{name}", f"{root}/new")
        after = os.lstat(f"{root}/new")
        assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
        os.rename(f"{root}/new", f"{root}/{name}")
    os.rename(f"{root}/link", f"{root}/fifo")
    assert os.readlink(f"{root}/fifo") == "x"


@case({"a": "1", "b": "2"})
def a_chain_of_renames(root: str) -> None:
    """As an editor and a log rotation do it."""
    put(f"{root}/new", b"next")
    os.rename(f"{root}/a", f"{root}/new2")
    os.rename(f"{root}/new", f"{root}/a")
    assert (content(f"{root}/a"), content(f"{root}/new2")) == (b"next", b"1")
    for turn in range(5):
        put(f"{root}/new", b"%d" % turn)
        os.rename(f"{root}/a", f"{root}/b")
        os.rename(f"{root}/new", f"{root}/a")
    assert (content(f"{root}/a"), content(f"{root}/b")) == (b"4", b"3")
    assert sorted(os.listdir(root)) == ["a", "b", "new2"]


@case({"dir": {"file": "x"}})
def open_files_follow_a_renamed_directory(root: str) -> None:
    with opened(f"{root}/dir/file", os.O_RDWR) as fd:
        os.rename(f"{root}/dir", f"{root}/new-dir")
        os.pwrite(fd, b"written", 0)
        assert content(f"{root}/new-dir/file") == b"written"
    with opened(f"{root}/new-dir", os.O_RDONLY) as fd:
        os.rename(f"{root}/new-dir", f"{root}/dir")
        with os.scandir(fd) as entries:
            assert [entry.name for entry in entries] == ["file"]
        handle = os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        os.close(handle)
    assert sorted(os.listdir(f"{root}/dir")) == ["file", "made"]


@case({"dir": {"a": {"b": {"c": "deep"}}}})
def move_a_directory_up_and_remove_the_rest(root: str) -> None:
    os.rename(f"{root}/dir/a/b", f"{root}/new-dir")
    os.rmdir(f"{root}/dir/a")
    os.rmdir(f"{root}/dir")
    os.rename(f"{root}/new-dir", f"{root}/dir")
    assert content(f"{root}/dir/c") == b"deep"
    assert os.listdir(f"{root}/dir") == ["c"]
