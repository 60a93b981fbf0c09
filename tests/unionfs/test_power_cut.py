"""A power cut at any time on ext4, xfs and btrfs: each change of a union is whole or was not made.

Random changes and syncs through a mount, and pictures of the disk in between; then each is mounted, a union over it,
and everything has to be where, and what, it may be (`timelines.py`). The file systems are asked the same without a
union: what they do not give is not asked of one. POWER_CUTS=200 takes more pictures, POWER_CUT_SEED=5 others.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mounting import Union
from tests.pictures import Disk, store
from tests.trees import Dir, Found, Tree, build, read
from tests.unionfs import inprocess
from tests.unionfs.random_world import RandomWorld
from tests.unionfs.timelines import History

pytestmark = [pytest.mark.needs("fuse", "loop", "user-xattr", "trusted-xattr", "program:mkfs.xfs")]

PICTURES = int(os.environ.get("POWER_CUTS", "20"))
SEED = int(os.environ.get("POWER_CUT_SEED", "9"))
OF_ONE_WORLD = 10
CHANGES_BEFORE, CHANGES_BETWEEN = 20, 6

# Whether what they show after a cut was so at one moment; btrfs's log tells of single files.
IN_ORDER = {"ext4": True, "xfs": True, "btrfs": False}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs(f"program:mkfs.{name}")) for name in IN_ORDER])
def new_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Disk]]:
    """Makes one after another."""
    with store(tmp_path) as place:
        count = iter(range(1 << 20))

        def make() -> Disk:
            home = place / str(next(count))
            home.mkdir()
            return Disk(home, request.param)

        yield make


@contextlib.contextmanager
def _plain(disk: Path, home: Path) -> Iterator[str]:
    yield str(disk / "low")


@contextlib.contextmanager
def _union(disk: Path, home: Path) -> Iterator[str]:
    (disk / "up").mkdir()
    union = Union(str(home), [str(disk / "low"), str(disk / "up")])
    union.mount()
    try:
        yield union.path
    finally:
        union.close()


def _in_process(disk: Path) -> Mapping[str, Found]:
    with inprocess.union(disk) as fs:
        return {path: _found(seen) for path, seen in inprocess.snapshot(fs).items()}


def _found(seen: inprocess.Seen) -> Found:
    mode = int(seen.mode, 8)
    link = stat.S_ISLNK(mode)
    return Found(
        stat.S_IFMT(mode), stat.S_IMODE(mode), uid=seen.owner, nlink=seen.nlink, xattrs=seen.xattrs,
        content=None if link else seen.content, target=os.fsdecode(seen.content or b"") if link else None,
    )  # fmt: skip


class Subject(NamedTuple):
    mounted: Callable[[Path, Path], contextlib.AbstractContextManager[str]]
    look: Callable[[Path], Mapping[str, Found]]


SUBJECTS = {"union": Subject(_union, _in_process), "plain": Subject(_plain, lambda disk: read(str(disk / "low")))}


@pytest.mark.parametrize("across", [False, True], ids=["within directories", "across directories"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_each_change_is_whole_or_was_not_made(
    name: str, across: bool, new_disk: Callable[[], Disk], tmp_path: Path
) -> None:
    problems = []
    for number in range(0, PICTURES // 2, OF_ONE_WORLD):
        seed = SEED * 1000 + number
        disk = new_disk()
        world = RandomWorld(seed, whiteouts=name == "union", across=across)
        for cut, history, log in _pictures(disk, SUBJECTS[name], world, tmp_path):
            with disk.after_the_cut(cut) as place:
                tree = SUBJECTS[name].look(place)
            if wrong := history.problems(tree, in_order=IN_ORDER[disk.kind]):
                problems += [f"seed {seed}, cut after {history.moment} changes:", *wrong, "the last of them:", *log]
        disk.remove()
    assert not problems, "\n".join(problems)


def _pictures(disk: Disk, subject: Subject, world: RandomWorld, home: Path) -> list[tuple[Path, History, list[str]]]:
    pictures: list[tuple[Path, History, list[str]]] = []
    umask = os.umask(0)
    try:
        with disk.mounted() as path:
            (path / "low").mkdir()
            world.build(str(path / "low"))
            subprocess.run(["sync", "--file-system", path], check=True)
            with subject.mounted(path, home) as root:
                world.begin(root, str(path))
                while len(pictures) < OF_ONE_WORLD:
                    for _ in range(CHANGES_BETWEEN if pictures else CHANGES_BEFORE):
                        world.change()
                        if world.random.random() < 0.4:
                            world.sync()
                    pictures.append((disk.picture(), world.history(), world.log[-20:]))
    finally:
        os.umask(umask)
    return pictures


LOW: Tree = {"a": "a", "x": "x", "dd": {"old": "old"}, "e": Dir({"f": "f", "empty": ""}, mode=0o711), "other": ""}


def _changed(root: str) -> None:
    os.rename(f"{root}/a", f"{root}/b")
    os.rename(f"{root}/x", f"{root}/y")
    os.unlink(f"{root}/dd/old")
    os.rmdir(f"{root}/dd")
    os.mkdir(f"{root}/dd")
    build(f"{root}/dd", {"new": "new"})
    os.rename(f"{root}/e", f"{root}/g")


def test_the_log_of_another_file_brings_no_halves(new_disk: Callable[[], Disk], tmp_path: Path) -> None:
    """Not one change is synced; a file is, which is no party to them."""
    disk = new_disk()
    with disk.mounted() as path:
        build(str(path / "low"), LOW)
        subprocess.run(["sync", "--file-system", path], check=True)
        with _union(path, tmp_path) as root:
            fd = os.open(f"{root}/other", os.O_RDWR)
            try:
                _changed(root)
                os.write(fd, b"said")
                os.fsync(fd)
                cut = disk.picture()
            finally:
                os.close(fd)
    with disk.after_the_cut(cut) as path:
        tree = _in_process(path)
    names = tree.keys()
    assert tree["other"].content == b"said"
    for old, new, content in (("a", "b", b"a"), ("x", "y", b"x"), ("e/f", "g/f", b"f"), ("e/empty", "g/empty", b"")):
        assert (old in names) != (new in names), f"{old} and {new}: {sorted(names)}"
        assert tree[old if old in names else new].content == content
    assert not {"dd/old", "dd/new"} <= names, "a removed file is in the new directory"


def test_whiteouts_that_entries_outlived_go_at_rest(new_disk: Callable[[], Disk], tmp_path: Path) -> None:
    """A layer at rest has none; a power cut may leave some, which hide nothing."""
    disk = new_disk()
    with disk.mounted() as path:
        build(str(path / "low"), LOW)
        with _union(path, tmp_path) as root:
            for name in ("a", "x"):
                os.unlink(f"{root}/{name}")
                build(root, {name: f"new {name}"})
            os.sync()
            cut = disk.picture()
            before = os.stat(root).st_mtime_ns
        assert {name for name in os.listdir(path / "up") if name.startswith(".wh.")} <= {".wh..wh.aufs"}
        assert os.stat(path / "up").st_mtime_ns == before
    with disk.after_the_cut(cut) as path:
        assert {name: found.content for name, found in _in_process(path).items() if name in "ax"} == {
            "a": b"new a", "x": b"new x"}  # fmt: skip
