"""Names: any bytes, up to the length that statvfs tells."""

from __future__ import annotations

import errno
import os

from tests.contracts.posix.case import case, content, fails, put

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


@case({"n" * 242: "long"})
def the_longest_name(root: str) -> None:
    """Names of f_namemax bytes can be made, linked, renamed and removed, also twice; one byte more cannot."""
    assert content(f"{root}/{'n' * 242}") == b"long"
    limit = os.statvfs(root).f_namemax
    assert limit >= 242
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
    os.rename(f"{root}/{'n' * 242}", b)
    os.unlink(b)
    assert os.listdir(root) == []
    for make in (lambda: put(a + "+", b""), lambda: os.mkdir(a + "+"), lambda: os.stat(f"{root}/{'c' * 256}")):
        with fails(errno.ENAMETOOLONG):
            make()


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
