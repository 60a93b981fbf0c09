"""A random sequence does to a union what it does to a plain directory, with a cache of directories that holds eight.

`test_random_sequence.py` does this through a mount. Here nothing is cached by a kernel and hardly anything by the
union, each step forgets all that it looked up, and the layers are made by unions too: each is the top of one, then
below the next. FUSE_AUFS_SEEDS=5,6 runs other sequences.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trees import Found, read
from tests.unionfs.inprocess import (
    ROOT,
    Seen,
    create,
    differences,
    keep_few_directories,
    known,
    listing,
    snapshot,
    union,
    write,
)
from unionfs.linux import consts, files
from unionfs.union.fs import UnionFs

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

SEEDS = [int(seed) for seed in os.environ.get("FUSE_AUFS_SEEDS", "1,2,3").split(",")]
LAYERS = ("low0", "low1", "low2", "up")
STEPS, LOOK_EVERY, REMOUNT_EVERY = 900, 60, 180

NAMES = ("a", "b", "c", 127 * "ä" + "d")  # 255 bytes


class Twin:
    """One operation at a time, on the union and on the plain directory beside it: both do it or both fail."""

    def __init__(self, fs: UnionFs, plain: str, pick: random.Random) -> None:
        self.fs = fs
        self.plain = plain
        self.random = pick
        self.log: list[str] = []

    def step(self) -> None:
        path, target, value = self.path(), self.path(), self.random.randrange(1000)
        name = self.random.choice(
            ("create", "write", "truncate", "mkdir", "mkdir", "rmdir", "unlink", "rename", "rename", "rename",
             "exchange", "link", "link", "symlink", "mkfifo", "change", "setxattr")
        )  # fmt: skip
        inside = path[: len(target)] == target[: len(path)]
        if name in ("rename", "exchange") and inside:
            return  # the kernel refuses it
        operation: Callable[..., None] = getattr(self, name)
        self.seen: list[int] = []
        try:
            union_says, plain_says = (
                outcome(lambda side=side: operation(side, path, target, value)) for side in ("union", "plain")  # type: ignore[misc]
            )
        finally:
            self.fs.forget([(ino, 1) for ino in self.seen])
        self.log.append(f"{name} {'/'.join(path)} {'/'.join(target)} {value} -> {plain_says or 'done'}")
        assert (union_says is None) == (plain_says is None), f"the union: {union_says}; the other: {plain_says}"

    def path(self) -> list[str]:
        return [self.random.choice(NAMES) for _ in range(self.random.choice((1, 1, 2, 2, 3)))]

    def find(self, path: list[str]) -> int:
        ino = ROOT
        for number, name in enumerate(path):
            attr = self.fs.lookup(ino, name.encode())
            if attr is None:
                raise FileNotFoundError("/".join(path))
            self.seen.append(attr.ino)
            if number < len(path) - 1 and not stat.S_ISDIR(attr.st.st_mode):
                raise NotADirectoryError("/".join(path))
            ino = attr.ino
        return ino

    def kind(self, side: str, path: list[str]) -> int:
        mode = self.fs.getattr(self.find(path)).st.st_mode if side == "union" else os.lstat(self.at(path)).st_mode
        return stat.S_IFMT(mode)

    def parent(self, path: list[str]) -> tuple[int, bytes]:
        """What the kernel resolves before it asks for anything: the directory, which must be one."""
        ino = self.find(path[:-1])
        if not stat.S_ISDIR(self.fs.getattr(ino).st.st_mode):
            raise NotADirectoryError("/".join(path))
        return ino, path[-1].encode()

    def at(self, path: list[str]) -> str:
        return os.path.join(self.plain, *path)

    # The operations. `side` is "union" or "plain".

    def create(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if side == "union":
            self.seen.append(create(self.fs, *self.parent(path), b"%d" % value))
        else:
            with open(self.at(path), "x", opener=lambda name, flags: os.open(name, flags, 0o644)) as made:
                made.write(f"{value}")

    def write(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if self.kind(side, path) not in (stat.S_IFREG, stat.S_IFDIR):
            raise OSError("not a file to write to")
        if side == "union":
            write(self.fs, self.find(path), b"w%d" % value, 3)
            return
        fd = os.open(self.at(path), os.O_WRONLY)
        try:
            os.pwrite(fd, b"w%d" % value, 3)
        finally:
            os.close(fd)

    def truncate(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if self.kind(side, path) != stat.S_IFREG:
            raise OSError("not a file to truncate")
        if side == "union":
            self.fs.setattr(self.find(path), size=value % 7)
        else:
            os.truncate(self.at(path), value % 7)

    def mkdir(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if side == "union":
            self.seen.append(self.fs.mkdir(*self.parent(path), 0o755, 0, 0).ino)
        else:
            os.mkdir(self.at(path), 0o755)

    def rmdir(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if side == "union":
            self.fs.rmdir(*self.parent(path))
        else:
            os.rmdir(self.at(path))

    def unlink(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if side == "union":
            self.fs.unlink(*self.parent(path))
        else:
            os.unlink(self.at(path))

    def rename(self, side: str, path: list[str], target: list[str], value: int) -> None:
        self._rename(side, path, target, consts.RENAME_NOREPLACE if value % 4 == 0 else 0)

    def exchange(self, side: str, path: list[str], target: list[str], value: int) -> None:
        self._rename(side, path, target, consts.RENAME_EXCHANGE)

    def _rename(self, side: str, path: list[str], target: list[str], flags: int) -> None:
        if side == "union":
            self.fs.rename(*self.parent(path), *self.parent(target), flags)
        else:
            old, new = os.fsencode(self.at(path)), os.fsencode(self.at(target))
            files.renameat2(consts.AT_FDCWD, old, consts.AT_FDCWD, new, flags)

    def link(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if self.kind(side, path) == stat.S_IFDIR:
            raise OSError("no links to directories")
        if side == "union":
            self.seen.append(self.fs.link(self.find(path), *self.parent(target)).ino)
        else:
            os.link(self.at(path), self.at(target), follow_symlinks=False)

    def symlink(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if side == "union":
            self.seen.append(self.fs.symlink(*self.parent(path), b"no/%d" % value, 0, 0).ino)
        else:
            os.symlink(f"no/{value}", self.at(path))

    def mkfifo(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if side == "union":
            self.seen.append(self.fs.mknod(*self.parent(path), stat.S_IFIFO | 0o644, 0, 0, 0).ino)
        else:
            os.mkfifo(self.at(path), 0o644)

    def change(self, side: str, path: list[str], target: list[str], value: int) -> None:
        """Owner and mode."""
        mode = None if self.kind(side, path) == stat.S_IFLNK else 0o700 + value % 8
        if side == "union":
            self.fs.setattr(self.find(path), uid=value % 3, mode=mode)
            return
        os.lchown(self.at(path), value % 3, -1)
        if mode is not None:
            os.chmod(self.at(path), mode)

    def setxattr(self, side: str, path: list[str], target: list[str], value: int) -> None:
        if side == "union":
            self.fs.setxattr(self.find(path), b"trusted.test", b"%d" % value)
        else:
            os.setxattr(self.at(path), "trusted.test", b"%d" % value, follow_symlinks=False)


def outcome(act: Callable[[], None]) -> str | None:
    try:
        act()
    except OSError as error:
        return str(error)
    return None


def comparable(plain: dict[str, Found]) -> dict[str, tuple[object, ...]]:
    """What a Seen says, but for the number."""
    return {
        path: (
            oct(found.type | (found.mode or 0)), found.uid, found.nlink or 1,
            found.target.encode() if found.target else found.content, found.xattrs,
        )
        for path, found in plain.items() if path != "."
    }  # fmt: skip


def check(fs: UnionFs, plain: str) -> dict[str, Seen]:
    """The union shows what the plain directory does, and holds on to nothing."""
    seen = snapshot(fs)
    wanted = comparable(read(plain, times=False))
    found = {path: tuple(entry[:-1]) for path, entry in seen.items()}
    wrong = {path: (found.get(path), wanted.get(path)) for path in found.keys() | wanted.keys()
             if found.get(path) != wanted.get(path)}  # fmt: skip
    assert not wrong, f"the union shows, the plain directory: {wrong}"
    assert sorted(os.fsencode(name) for name in os.listdir(plain)) == listing(fs)
    fs.check_invariants()
    assert known(fs) == 1, "a node that nobody knows is left in the table"
    return seen


@contextlib.contextmanager
def layers(base: Path, top: int) -> Iterator[UnionFs]:
    """LAYERS[top] over those before it."""
    below = reversed(LAYERS[:top])
    with union(base, *(list(below) or ["empty"]), upper=LAYERS[top]) as fs:
        keep_few_directories(fs, 8)
        yield fs


@pytest.mark.parametrize("seed", SEEDS)
def test_same_as_a_plain_directory(tmp_path: Path, seed: int) -> None:
    pick = random.Random(seed)
    plain = str(tmp_path / "plain")
    os.mkdir(plain)
    log: list[str] = []
    try:
        for top in range(len(LAYERS)):
            before: dict[str, Seen] | None = None
            for _ in range(STEPS // REMOUNT_EVERY):
                with layers(tmp_path, top) as fs:
                    twin = Twin(fs, plain, pick)
                    if before is not None:
                        changed = differences(before, check(fs, plain))
                        assert not changed, f"a remount changed {changed}"
                    for number in range(REMOUNT_EVERY):
                        twin.log = log
                        twin.step()
                        if number % LOOK_EVERY == LOOK_EVERY - 1:
                            before = check(fs, plain)
    except AssertionError as error:
        tail = "\n".join(log[-20:])
        raise AssertionError(f"seed {seed}, after {len(log)} steps:\n{error}\n\nthe last operations:\n{tail}") from None
