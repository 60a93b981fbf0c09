"""Names: any bytes, up to the length that statvfs tells, which is 255."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable

from tests.contracts.posix.case import case, content, fails, put
from tests.contracts.posix.renames import rename2
from tests.trees import HardLink, Symlink, Tree
from unionfs.linux import consts

ODD = [b"with space", b"tab\there", b"new\nline", b"\xff\xfe not utf-8", "späße".encode(), b"-dash", b"..dots", b"...",
       b".hidden", b"back\\slash", b"quote'\"", b"colon:comma,equals=", b"\x01\x7f", b".wharf", b"wh.name", b"a.wh.b"]


@case({os.fsdecode(name): name for name in ODD})
def odd_names_that_were_there(root: str) -> None:
    directory = os.fsencode(root)
    assert sorted(os.listdir(directory)) == sorted(ODD)
    for name in ODD:
        path = os.path.join(directory, name)
        assert content(os.fsdecode(path)) == name
        os.rename(path, path + b"+")
        os.unlink(path + b"+")
    assert os.listdir(directory) == []


@case()
def odd_names_that_are_made(root: str) -> None:
    directory = os.fsencode(root) + b"/new-dir"
    os.mkdir(directory)
    for name in ODD:
        put(os.fsdecode(os.path.join(directory, name)), name)
    assert sorted(os.listdir(directory)) == sorted(ODD)


# Of 251 to 255 bytes.
LONG = ["n" * 251, "n" * 252, "é" * 126 + "n", "𝄞" * 63 + "nn", "€" * 85]
assert [len(os.fsencode(name)) for name in LONG] == [251, 252, 253, 254, 255]
LONGEST = LONG[-1]


@case({"n" * 255: "long"})
def the_longest_name(root: str) -> None:
    """Names of f_namemax bytes can be made, linked, renamed and removed, also twice; one byte more cannot."""
    assert content(f"{root}/{'n' * 255}") == b"long"
    limit = os.statvfs(root).f_namemax
    assert limit == 255
    a, b = f"{root}/{'a' * limit}", f"{root}/{'b' * limit}"
    for _ in range(2):
        put(a, b"data")
        os.link(a, b)
        os.unlink(a)
        os.rename(b, a)
        os.unlink(a)
        os.mkdir(a)
        os.rename(a, b)
        os.rmdir(b)
        os.symlink("x", a)
        os.unlink(a)
    os.rename(f"{root}/{'n' * 255}", b)
    os.unlink(b)
    assert os.listdir(root) == []


@case({"file": "f", "dir": {}})
def a_name_that_is_too_long(root: str) -> None:
    """256 bytes: it does not only not exist."""
    file, bad = f"{root}/file", f"{root}/{'n' * 256}"
    calls: list[Callable[[], object]] = [
        lambda: os.stat(bad), lambda: os.lstat(bad), lambda: os.chmod(bad, 0o600), lambda: os.lchown(bad, 0, 0),
        lambda: os.truncate(bad, 0), lambda: os.utime(bad), lambda: os.unlink(bad), lambda: os.rmdir(bad),
        lambda: os.mkdir(bad), lambda: os.mkfifo(bad), lambda: os.symlink("x", bad), lambda: os.readlink(bad),
        lambda: os.link(file, bad), lambda: os.link(bad, f"{root}/new"), lambda: os.rename(file, bad),
        lambda: os.rename(bad, file), lambda: rename2(file, bad, consts.RENAME_EXCHANGE),
        lambda: rename2(file, bad, consts.RENAME_NOREPLACE), lambda: put(bad, b""), lambda: os.open(bad, os.O_RDONLY),
        lambda: os.listdir(bad), lambda: os.stat(f"{bad}/x"), lambda: os.stat(f"{root}/dir/{'é' * 128}"),
        lambda: os.getxattr(bad, "user.a"), lambda: os.stat(f"{root}/{'n' * 2000}"),
    ]  # fmt: skip
    for call in calls:
        with fails(errno.ENAMETOOLONG):
            call()
    with fails(errno.ENOENT):
        os.unlink(f"{root}/{'n' * 255}")
    assert sorted(os.listdir(root)) == ["dir", "file"]


LONG_TREE: Tree = {
    "files": {name: name for name in LONG},
    "dirs": {name: {name: name, "sub": {}} for name in LONG},
    "links": {"a" + LONGEST[:80]: "linked", LONGEST: HardLink("a" + LONGEST[:80]), LONG[1]: Symlink(LONGEST)},
    LONGEST: {},
}


@case(LONG_TREE)
def long_names_that_are_removed(root: str) -> None:
    """They were there; each goes, comes again as another kind, and goes."""
    for name in LONG:
        file, directory = f"{root}/files/{name}", f"{root}/dirs/{name}"
        assert content(file) == content(f"{directory}/{name}") == name.encode()
        os.unlink(file)
        for path in (file, directory):
            if path == directory:
                shutil.rmtree(path)
            with fails(errno.ENOENT):
                os.stat(path)
            assert name not in os.listdir(os.path.dirname(path))
            os.mkdir(path)
            assert os.listdir(path) == []
            put(f"{path}/{name}", b"x")
            os.unlink(f"{path}/{name}")
            os.rmdir(path)
            put(path, b"new")
            assert content(path) == b"new"
            os.unlink(path)
            os.symlink("files", path)
            os.unlink(path)
            os.mkfifo(path)
            os.unlink(path)
    assert os.listdir(f"{root}/files") == os.listdir(f"{root}/dirs") == []
    os.rmdir(f"{root}/files")
    shutil.rmtree(root + "/links")
    os.rmdir(f"{root}/dirs")
    assert os.listdir(root) == [LONGEST]


@case(LONG_TREE)
def long_names_that_are_renamed(root: str) -> None:
    """Away, over each other, back, and in exchange."""
    for name in LONG:
        file, directory = f"{root}/files/{name}", f"{root}/dirs/{name}"
        os.rename(file, f"{root}/short")
        assert name not in os.listdir(f"{root}/files")
        os.mkdir(file)
        os.rmdir(file)
        os.rename(f"{root}/short", file)
        os.rename(directory, f"{root}/short")
        os.mkdir(directory)
        assert os.listdir(directory) == []
        os.rename(f"{root}/short", directory)
        assert sorted(os.listdir(directory)) == sorted([name, "sub"])
        rename2(file, f"{directory}/{name}", consts.RENAME_EXCHANGE)
        rename2(file, directory, consts.RENAME_EXCHANGE)
        assert content(directory) == content(f"{file}/{name}") == name.encode()
        os.unlink(directory)
        os.rename(file, directory)
        with fails(errno.ENOENT):
            os.stat(file)
    for old, new in itertools.pairwise(LONG):
        shutil.rmtree(f"{root}/dirs/{new}/sub")
        os.unlink(f"{root}/dirs/{new}/{new}")
        os.rename(f"{root}/dirs/{old}", f"{root}/dirs/{new}")
        put(f"{root}/dirs/{old}", b"")
        os.rename(f"{root}/dirs/{new}/{LONG[0]}", f"{root}/dirs/{new}/{new}")
        os.rename(f"{root}/dirs/{new}/{new}", f"{root}/dirs/{new}/{LONG[0]}")
    assert sorted(os.listdir(f"{root}/dirs/{LONGEST}")) == sorted([LONG[0], "sub"])
    os.rename(f"{root}/dirs/{LONGEST}", f"{root}/{LONGEST}")
    assert sorted(os.listdir(f"{root}/dirs")) == sorted(LONG[:-1])
    shutil.rmtree(f"{root}/dirs")
    shutil.rmtree(f"{root}/{LONGEST}")


@case(LONG_TREE)
def long_names_that_are_linked(root: str) -> None:
    short, longest = f"{root}/links/{'a' + LONGEST[:80]}", f"{root}/links/{LONGEST}"
    assert os.path.samestat(os.stat(longest), os.stat(f"{root}/links/{LONG[1]}"))
    os.unlink(longest)
    assert os.stat(short).st_nlink == 1
    os.link(short, longest)
    os.unlink(short)
    put(longest, b"changed")
    assert content(f"{root}/links/{LONG[1]}") == b"changed"
    os.link(longest, f"{root}/files/new")
    os.rename(longest, f"{root}/files/{LONGEST}")
    assert os.stat(f"{root}/files/new").st_nlink == 2
    with fails(errno.ENOENT):
        os.stat(f"{root}/links/{LONG[1]}")
    os.unlink(f"{root}/files/{LONGEST}")
    assert os.stat(f"{root}/files/new").st_nlink == 1


@case({"file": ""})
def bad_paths(root: str) -> None:
    with fails(errno.ENOENT):
        os.stat("")
    with fails(errno.ENAMETOOLONG):
        os.stat(root + "/x" * 4096)
    with fails(errno.ENOTDIR):
        os.stat(f"{root}/file/x")
    with fails(errno.ENOENT):
        os.unlink(f"{root}/missing")
    with fails(errno.ENOTDIR):
        os.unlink(f"{root}/file/")
