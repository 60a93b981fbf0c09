"""Many threads at once do everything to few names; afterwards memory, disk and link counts tell the same story.

What happens in which order is up to the scheduler; what must hold afterwards is not. FUSE_AUFS_SEEDS=5,6 does other
things.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trees import Entry, HardLink, assert_same, build, read
from tests.unionfs.inprocess import (
    ROOT,
    content,
    create,
    descriptors,
    differences,
    keep_few_directories,
    known,
    listing,
    snapshot,
    union,
    waiting_for_copies,
    walk,
    write,
)
from unionfs.linux import consts
from unionfs.union import copydata
from unionfs.union.fs import UnionFs

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

SEEDS = [int(seed) for seed in os.environ.get("FUSE_AUFS_SEEDS", "1,2").split(",")]
THREADS, STEPS = 6, 500

NAMES = ("a", "b", "c", "aL", "bL", "cL")
EXPECTED = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.EPERM,
    errno.ENXIO,  # an open of a symbolic link, which the kernel would not ask for
}  # fmt: skip


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def lower(depth: int) -> dict[str, Entry]:
    """Files of two names each, large enough that a copy-up takes several calls."""
    tree: dict[str, Entry] = {"c": "c" * 100_000, "cL": HardLink("c")}
    for name in ("a", "b"):
        if depth:
            tree[name] = lower(depth - 1)
        else:
            tree[name] = name * 100_000
            tree[f"{name}L"] = HardLink(name)
    return tree


class Worker(threading.Thread):
    """Does STEPS random operations and forgets what it looked up; `unexpected` is a traceback, or empty."""

    renaming = threading.Lock()  # the kernel renames directories one at a time (s_vfs_rename_mutex)

    def __init__(self, fs: UnionFs, seed: int) -> None:
        super().__init__()
        self.fs = fs
        self.random = random.Random(seed)
        self.unexpected = ""

    def run(self) -> None:
        for _ in range(STEPS):
            self.seen: list[int] = []
            try:
                self.step()
            except OSError as error:
                if error.errno not in EXPECTED:
                    self.unexpected = traceback.format_exc()
                    return
            except BaseException:
                self.unexpected = traceback.format_exc()
                return
            finally:
                self.fs.forget([(ino, 1) for ino in self.seen])

    def find(self, path: list[str]) -> int:
        """`walk`, but what was looked up before a missing name is forgotten as well."""
        ino = ROOT
        for name in path:
            attr = self.fs.lookup(ino, name.encode())
            if attr is None:
                raise FileNotFoundError(errno.ENOENT, "/".join(path))
            self.seen.append(attr.ino)
            ino = attr.ino
        return ino

    def path(self) -> list[str]:
        """Mostly of what is there, or was just now."""
        path: list[str] = []
        directory = ROOT
        while True:
            there = [os.fsdecode(name) for name in listing(self.fs, directory)]
            path.append(self.random.choice(there if there and self.random.random() < 0.8 else NAMES))
            attr = self.fs.lookup(directory, path[-1].encode())
            if attr is None:
                return path
            self.seen.append(attr.ino)
            if not stat.S_ISDIR(attr.st.st_mode) or len(path) == 4 or self.random.random() < 0.2:
                return path
            directory = attr.ino

    def step(self) -> None:
        fs, path = self.fs, self.path()
        name = path[-1].encode()
        match self.random.choice(
            ("read", "write", "truncate", "chmod", "unlink", "rmdir", "mkdir", "mkdir", "create", "create", "list",
             "link", "link", "symlink", "rename", "rename", "exchange")
        ):  # fmt: skip
            case "read":
                fh = fs.open(self.find(path), os.O_RDONLY)
                fs.read(fh, 0, 10_000)
                fs.release(fh)
            case "write":
                write(fs, self.find(path), b"written", 5)
            case "truncate":
                ino = self.find(path)
                if stat.S_ISREG(fs.getattr(ino).st.st_mode):
                    fs.setattr(ino, size=7)
            case "chmod":
                ino = self.find(path)
                if not stat.S_ISLNK(fs.getattr(ino).st.st_mode):
                    fs.setattr(ino, mode=0o755)
            case "unlink":
                fs.unlink(self.find(path[:-1]), name)
            case "rmdir":
                fs.rmdir(self.find(path[:-1]), name)
            case "mkdir":
                self.seen.append(fs.mkdir(self.find(path[:-1]), name, 0o755, 0, 0).ino)
            case "create":
                self.seen.append(create(fs, self.find(path[:-1]), name, b"created"))
            case "symlink":
                self.seen.append(fs.symlink(self.find(path[:-1]), name, b"target", 0, 0).ino)
            case "list":
                listing(fs, self.find(path[:-1]))
            case "link":
                ino, target = self.find(path), self.path()
                if not stat.S_ISDIR(fs.getattr(ino).st.st_mode):
                    self.seen.append(fs.link(ino, self.find(target[:-1]), target[-1].encode()).ino)
            case "rename":
                self.rename(path, 0)
            case "exchange":
                self.rename(path, consts.RENAME_EXCHANGE)

    def rename(self, path: list[str], flags: int) -> None:
        target = self.path()
        shorter = min(len(path), len(target))
        with self.renaming:
            old, new = self.find(path[:-1]), self.find(target[:-1])
            # Into itself, which the kernel refuses: a directory may also be met on its way by another name.
            if path[:shorter] != target[:shorter]:
                self.fs.rename(old, path[-1].encode(), new, target[-1].encode(), flags)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_at_once(tmp_path: Path, seed: int) -> None:
    build(str(tmp_path / "low"), lower(3))
    before = read(str(tmp_path / "low"))
    opened = descriptors()
    with union(tmp_path) as fs:
        keep_few_directories(fs, 16)
        workers = [Worker(fs, seed * 100 + number) for number in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        unexpected = [worker.unexpected for worker in workers if worker.unexpected]
        assert not unexpected, "\n".join(unexpected)
        fs.check_invariants()
        assert known(fs) == 1, "nodes that nobody refers to are left in the table"
        seen = snapshot(fs)
        names = Counter(entry.ino for entry in seen.values())
        for path, entry in seen.items():
            assert entry.nlink == names[entry.ino], f"{path} has {names[entry.ino]} names and a count of {entry.nlink}"
    with union(tmp_path) as fs:
        disagreeing = differences(seen, snapshot(fs))
        assert not disagreeing, f"memory and disk disagree: {disagreeing}"
    assert descriptors() == opened
    assert_same(before, read(str(tmp_path / "low")), "of the lower branch")


def test_one_file_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads write to one lower file, and the first copies it up: the others wait for that copy, and no write
    is lost with a second one."""
    build(str(tmp_path / "low"), {"f": "-" * 8, "g": HardLink("f")})
    copies: list[int] = []
    real = copydata.copy

    def copy_when_all_are_here(source: int, *others: Any) -> None:
        copies.append(source)
        deadline = time.monotonic() + 30
        while waiting_for_copies(fs) < 7 and len(copies) == 1 and time.monotonic() < deadline:
            time.sleep(0.001)  # a condition's waiters can only be counted
        real(source, *others)

    monkeypatch.setattr(copydata, "copy", copy_when_all_are_here)
    with union(tmp_path) as fs:
        inode = walk(fs, "f")
        threads = [threading.Thread(target=write, args=(fs, inode, b"%d" % number, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(copies) == 1
        assert content(fs, inode) == b"01234567"
        assert fs.getattr(inode).nlink == 2
        assert walk(fs, "g") == inode
        fs.check_invariants()
    assert sorted(os.listdir(tmp_path / "up")) == [".wh..wh.plnk", "f"]
