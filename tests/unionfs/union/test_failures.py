"""A failing disk: an operation that fails has not happened, and what the union remembers is what is on the disk.

The sweep lets each call that an operation makes to the system fail once, in process: the server goes on with what it
has in memory, which a test by mount and remount would not see. (`test_crash.py` is about what is on the disk.)
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trees import HardLink, Special, Symlink, Tree, assert_same, build, read
from tests.unionfs.inprocess import (
    ROOT,
    create,
    descriptors,
    differences,
    listing,
    see,
    snapshot,
    union,
    walk,
    write,
)
from unionfs.linux import consts, files
from unionfs.union.fs import UnionFs

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

LOWER: Tree = {
    "d": {"a": "aaaa", "s": Symlink("x"), "p": Special(), "e": {"z": "z"}},
    "f": "F", "g": HardLink("f"), "l": Symlink("x"), "m": HardLink("l"),
    "both": {"y": "y"}, "t": {"old": "x"}, "empty": {}, "gone": {"x": ""}, "h": {"i": HardLink("../f")},
}  # fmt: skip
UPPER: Tree = {"u": "U", "t": {".wh.old": ""}, ".wh.gone": "", "both": {}, "w": {}}

Held = dict[str, int]
HELD = ["d", "d/a", "d/s", "d/p", "d/e", "d/e/z", "h/i", "f", "g", "t", "u", "both", "both/y", "empty", "l", "m"]



def name_an_unnamed_file(fs: UnionFs, at: Held) -> None:
    fh, attr = fs.tmpfile(at["d"], 0o600, 5, 6)
    try:
        fs.link(attr.ino, at["d"], b"new")
    finally:
        fs.release(fh)
        fs.forget([(attr.ino, 1)])


OPERATIONS: dict[str, Callable[[UnionFs, Held], object]] = {
    "write": lambda fs, at: write(fs, at["d/a"], b"W"),
    "truncate": lambda fs, at: fs.setattr(at["d/a"], size=1),
    "write a hard link": lambda fs, at: write(fs, at["f"], b"W"),
    "chown a symlink": lambda fs, at: fs.setattr(at["d/s"], uid=3),
    "chown a hard-linked symlink": lambda fs, at: fs.setattr(at["l"], uid=3),
    "chmod a fifo": lambda fs, at: fs.setattr(at["d/p"], mode=0o600),
    "chmod a directory": lambda fs, at: fs.setattr(at["d/e"], mode=0o700),
    "unlink": lambda fs, at: fs.unlink(at["d"], b"a"),
    "unlink a hard link": lambda fs, at: fs.unlink(ROOT, b"g"),
    "unlink in the upper": lambda fs, at: fs.unlink(ROOT, b"u"),
    "rmdir": lambda fs, at: fs.rmdir(ROOT, b"empty"),
    "rmdir in the upper": lambda fs, at: fs.rmdir(ROOT, b"w"),
    "rmdir with whiteouts": lambda fs, at: fs.rmdir(ROOT, b"t"),
    "mkdir over a whiteout": lambda fs, at: fs.mkdir(ROOT, b"gone", 0o755, 5, 6),
    "create over a whiteout": lambda fs, at: create(fs, ROOT, b"gone"),
    "create for another": lambda fs, at: fs.release(fs.create(at["d"], b"new", 0o644, 5, 6)[0]),
    "create with a set-ID bit": lambda fs, at: fs.release(fs.create(at["d"], b"new", 0o2640, 0, 0)[0]),
    "name an unnamed file": name_an_unnamed_file,
    "mkdir": lambda fs, at: fs.mkdir(at["both"], b"new", 0o755, 0, 0),
    "mkdir for another": lambda fs, at: fs.mkdir(at["both"], b"new", 0o755, 5, 6),
    "mknod at once": lambda fs, at: fs.mknod(ROOT, b"gone", 0o10644, 0, 0, 0),
    "mknod": lambda fs, at: fs.mknod(at["d"], b"new", 0o10644, 0, 5, 6),
    "symlink at once": lambda fs, at: fs.symlink(ROOT, b"gone", b"x", 0, 0),
    "symlink": lambda fs, at: fs.symlink(at["d"], b"new", b"x", 5, 6),
    "link a hard link": lambda fs, at: fs.link(at["f"], at["d"], b"new"),
    "link": lambda fs, at: fs.link(at["d/a"], at["both"], b"new"),
    "rename a directory": lambda fs, at: fs.rename(ROOT, b"d", at["both"], b"d"),
    "rename an empty directory over an emptied one": lambda fs, at: fs.rename(ROOT, b"empty", ROOT, b"t"),
    "rename an empty directory over a whiteout": lambda fs, at: fs.rename(ROOT, b"empty", ROOT, b"gone"),
    "rename in the upper": lambda fs, at: fs.rename(ROOT, b"u", at["both"], b"new"),
    "rename leaving a whiteout": lambda fs, at: fs.rename(ROOT, b"u", ROOT, b"new", consts.RENAME_WHITEOUT),
    "rename over an upper file": lambda fs, at: fs.rename(at["d"], b"a", ROOT, b"u"),
    "rename over a hard link": lambda fs, at: fs.rename(ROOT, b"u", ROOT, b"f"),
    "rename a hard link": lambda fs, at: fs.rename(ROOT, b"f", ROOT, b"u"),
    "exchange": lambda fs, at: fs.rename(at["d"], b"e", ROOT, b"f", consts.RENAME_EXCHANGE),
}

# These answer with attributes: an error of looking at what they did comes when it is done.
ANSWERING = {
    "truncate", "chown a symlink", "chown a hard-linked symlink", "chmod a fifo", "chmod a directory",
    "mkdir over a whiteout", "create over a whiteout", "mknod", "symlink", "link a hard link", "link",
    "create for another", "create with a set-ID bit", "name an unnamed file", "mkdir", "mkdir for another",
    "mknod at once", "symlink at once",
}  # fmt: skip
LOOKING = {"stat", "fstat", "getxattr"}

OS_CALLS = [
    "access", "chmod", "chown", "copy_file_range", "dup", "fchmod", "fstat", "fsync", "ftruncate", "getxattr", "link",
    "listdir", "listxattr", "lseek", "mkdir", "mknod", "open", "pread", "pwrite", "readlink", "removexattr", "rename",
    "rmdir", "scandir", "setxattr", "stat", "symlink", "truncate", "unlink", "utime",
]  # fmt: skip
FILES_CALLS = ["openat2", "renameat2", "ficlone", "link_fd"]


class Fault:
    """Between `arm` and `disarm` the Nth call of those above raises; `failed` is its name then, otherwise None."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failed: str | None = None
        self._left = -1
        self._code = 0
        for module, names in ((os, OS_CALLS), (files, FILES_CALLS)):
            for name in names:
                monkeypatch.setattr(module, name, self._failing(name, getattr(module, name)))

    def arm(self, number: int, code: int) -> None:
        self.failed, self._left, self._code = None, number, code

    def disarm(self) -> None:
        self._left = -1

    def _failing(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if self._left == 0:
                self._left, self.failed = -1, name
                raise OSError(self._code, os.strerror(self._code))
            if self._left > 0:
                self._left -= 1
            return real(*arguments, **named)

        return call


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Which errno it is nobody asks (but for some that are not a disk's); so calls fail with one or the other."""
    build(str(tmp_path / "low"), LOWER)
    lower = read(str(tmp_path / "low"))
    fault = Fault(monkeypatch)
    number = 0
    while check_point(tmp_path, fault, name, number):
        number += 1
    assert number > 2, "no call of the operation was met"
    assert_same(lower, read(str(tmp_path / "low")), "of the lower branch")


def check_point(base: Path, fault: Fault, name: str, number: int) -> bool:
    """Let the `number`th call of the operation fail, look, and do it again; False when it makes fewer calls."""
    operation = OPERATIONS[name]
    shutil.rmtree(base / "up", ignore_errors=True)
    build(str(base / "up"), UPPER)
    opened = descriptors()
    error: OSError | None = None
    with union(base) as fs:
        at = {path: walk(fs, path) for path in HELD}
        before = snapshot(fs)
        fault.arm(number, (errno.ENOSPC, errno.EIO)[number % 2])
        try:
            operation(fs, at)
        except OSError as caught:
            error = caught
        finally:
            fault.disarm()
        if fault.failed is None:
            assert error is None
            return False
        point = f"{name}: call {number} ({fault.failed}) fails"
        fs.check_invariants()
        if error is not None:
            changed = differences(before, snapshot(fs))
            if changed:
                assert name in ANSWERING and fault.failed in LOOKING, f"{point}: it raised and happened: {changed}"
            else:
                for path, ino in at.items():
                    assert see(fs, ino) == before[path], f"{point}: {path} has changed for whoever knows it already"
                operation(fs, at)
        after = snapshot(fs)
        fs.check_invariants()
    assert descriptors() == opened, f"{point}: a descriptor is left open"
    with union(base) as fs:
        disagreeing = differences(after, snapshot(fs))
    assert not disagreeing, f"{point}: a remount shows something else: {disagreeing}"
    return True


def test_a_failed_rename_over_an_emptied_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its whiteouts are gone by then. It must stay empty, in the plain AUFS layer too: others know no attributes."""
    build(str(tmp_path / "low"), {"t": {"secret": "x"}, "s": {}})
    link = os.link

    def full(source: bytes, target: bytes, **directories: object) -> None:
        if target == b".wh.s":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(source, target, **directories)  # type: ignore[arg-type]

    with union(tmp_path) as fs:
        fs.unlink(walk(fs, "t"), b"secret")
        monkeypatch.setattr(os, "link", full)
        with pytest.raises(OSError, match="No space"):
            fs.rename(ROOT, b"s", ROOT, b"t")
        monkeypatch.setattr(os, "link", link)
        assert listing(fs, walk(fs, "t")) == []
        assert os.listdir(tmp_path / "up" / "t") == [".wh..wh..opq"]
        create(fs, walk(fs, "t"), b"new")
    for attribute in os.listxattr(tmp_path / "up" / "t"):
        os.removexattr(tmp_path / "up" / "t", attribute)
    with union(tmp_path) as fs:
        assert listing(fs, walk(fs, "t")) == [b"new"]
        fs.unlink(walk(fs, "t"), b"new")
        fs.rename(ROOT, b"s", ROOT, b"t")
        assert listing(fs) == [b"t"]
        assert listing(fs, walk(fs, "t")) == []
