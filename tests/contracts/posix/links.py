"""Hard links and symbolic links."""

from __future__ import annotations

import errno
import os

from tests.contracts.posix.case import case, content, fails, put
from tests.trees import File, HardLink, Symlink


@case({"file": "data", "dir": {}})
def make_a_hard_link(root: str) -> None:
    os.link(f"{root}/file", f"{root}/dir/new")
    one, two = os.stat(f"{root}/file"), os.stat(f"{root}/dir/new")
    assert (one.st_ino, one.st_nlink) == (two.st_ino, two.st_nlink)
    assert one.st_nlink == 2
    put(f"{root}/dir/new", b"changed")
    assert content(f"{root}/file") == b"changed"
    os.chmod(f"{root}/file", 0o600)
    assert os.stat(f"{root}/dir/new").st_mode & 0o777 == 0o600
    os.unlink(f"{root}/file")
    assert os.stat(f"{root}/dir/new").st_nlink == 1
    assert content(f"{root}/dir/new") == b"changed"


@case({"a": File("data", mode=0o640), "b": HardLink("a"), "dir": {"c": HardLink("../a")}})
def links_that_were_there_stay_one_file(root: str) -> None:
    names = ("a", "b", "dir/c")
    assert {os.stat(f"{root}/{name}").st_nlink for name in names} == {3}
    assert len({os.stat(f"{root}/{name}").st_ino for name in names}) == 1
    put(f"{root}/b", b"written through b", 0)
    assert {content(f"{root}/{name}") for name in names} == {b"written through b"}
    put(f"{root}/dir/c", b" and c", os.O_APPEND)
    os.chmod(f"{root}/a", 0o600)
    assert {content(f"{root}/{name}") for name in names} == {b"written through b and c"}
    assert {os.stat(f"{root}/{name}").st_mode & 0o777 for name in names} == {0o600}
    assert len({os.stat(f"{root}/{name}").st_ino for name in names}) == 1
    os.unlink(f"{root}/b")
    assert {os.stat(f"{root}/{name}").st_nlink for name in ("a", "dir/c")} == {2}


@case({"a": "data", "b": HardLink("a"), "c": HardLink("a")})
def a_link_that_was_there_is_removed_or_replaced(root: str) -> None:
    os.unlink(f"{root}/a")
    assert os.stat(f"{root}/b").st_nlink == 2
    put(f"{root}/new", b"other")
    os.rename(f"{root}/new", f"{root}/b")
    assert (os.stat(f"{root}/c").st_nlink, content(f"{root}/c")) == (1, b"data")
    assert (os.stat(f"{root}/b").st_nlink, content(f"{root}/b")) == (1, b"other")


@case({"a": "data", "b": HardLink("a")})
def one_more_link_to_a_linked_file(root: str) -> None:
    os.link(f"{root}/a", f"{root}/new")
    assert os.stat(f"{root}/b").st_nlink == 3
    put(f"{root}/new", b"all")
    assert content(f"{root}/a") == content(f"{root}/b") == b"all"


@case({"file": "x", "other": "y", "dir": {}, "link": Symlink("file")})
def link_errors(root: str) -> None:
    with fails(errno.EEXIST):
        os.link(f"{root}/file", f"{root}/other")
    with fails(errno.EPERM):
        os.link(f"{root}/dir", f"{root}/new")
    with fails(errno.ENOENT):
        os.link(f"{root}/missing", f"{root}/new")
    with fails(errno.ENOENT):
        os.link(f"{root}/file", f"{root}/missing/new")
    assert os.stat(f"{root}/file").st_nlink == 1


@case({"file": "x", "link": Symlink("file")})
def link_to_a_symlink(root: str) -> None:
    os.link(f"{root}/link", f"{root}/new", follow_symlinks=False)
    assert os.readlink(f"{root}/new") == "file"
    assert os.lstat(f"{root}/new").st_ino == os.lstat(f"{root}/link").st_ino
    assert os.lstat(f"{root}/link").st_nlink == 2


@case({"link": Symlink("dir/file"), "dir": {"file": "x"}, "dangling": Symlink("nowhere"),
       "loop": Symlink("loop"), "todir": Symlink("dir")})
def follow_symlinks(root: str) -> None:
    assert os.readlink(f"{root}/link") == "dir/file"
    assert os.lstat(f"{root}/link").st_size == 8
    assert content(f"{root}/link") == b"x"
    assert content(f"{root}/todir/file") == b"x"
    with fails(errno.ENOENT):
        os.stat(f"{root}/dangling")
    with fails(errno.ELOOP):
        os.stat(f"{root}/loop")
    with fails(errno.EINVAL):
        os.readlink(f"{root}/dir/file")
    with fails(errno.EINVAL):
        os.readlink(f"{root}/dir")
    with fails(errno.ENOTDIR):
        os.rmdir(f"{root}/todir")


@case({"link": Symlink("old")})
def make_symlinks(root: str) -> None:
    long = "x/" * 2000 + "end"
    os.symlink(long, f"{root}/new")
    assert os.readlink(f"{root}/new") == long
    with fails(errno.EEXIST):
        os.symlink("other", f"{root}/link")
    os.unlink(f"{root}/link")
    os.symlink("new", f"{root}/link")
    assert os.readlink(f"{root}/link") == "new"
    with fails(errno.ENOENT):
        os.symlink("", f"{root}/new2")


@case({"link": Symlink("nowhere")})
def owner_and_times_of_a_symlink(root: str) -> None:
    path = f"{root}/link"
    os.lchown(path, 12, 34)
    os.utime(path, ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
    info = os.lstat(path)
    assert (info.st_uid, info.st_gid, info.st_mtime_ns) == (12, 34, 10**18 + 2)
    assert info.st_mode & 0o777 == 0o777
    assert os.readlink(path) == "nowhere"
