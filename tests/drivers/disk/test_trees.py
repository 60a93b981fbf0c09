"""Trees deeper than any path, and copies that are like what they were made of."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.disk import copytree
from drivers.disk.copytree import copy_tree
from drivers.disk.trees import DIRECTORY, delete, disk_usage, open_below, walk
from drivers.mounts.attached import mount_all, unmount_all
from tests import trees
from tests.mounting import mounted
from tests.trees import Dir, File, HardLink, Special, Symlink

DEPTH = 1200  # directories, of 30 bytes each: far beyond PATH_MAX, the recursion limit and the descriptor limit
STEP = b"a-directory-with-a-longer-name"


@contextmanager
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory `deep` with DEPTH others below it, one in another, and a file in the last."""
    top = tmp_path / "deep"
    top.mkdir()
    fd = os.open(top, DIRECTORY)
    for _ in range(DEPTH):
        os.mkdir(STEP, dir_fd=fd)
        below = os.open(STEP, DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open(b"last", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    yield top
    for name in os.listdir(tmp_path):  # shutil.rmtree, which pytest uses, cannot
        fd = os.open(tmp_path, DIRECTORY)
        delete(fd, name)
        os.close(fd)


def test_a_deep_tree_is_walked_measured_copied_and_deleted(deep: Path, tmp_path: Path) -> None:
    with few_descriptors():
        assert disk_usage(str(deep)).inodes == DEPTH + 2
        copy_tree(str(deep), str(tmp_path / "copy"))
        root = os.open(tmp_path / "copy", DIRECTORY)
        lowest = open_below(root, b"/".join([STEP] * DEPTH))
        assert os.listdir(lowest) == ["last"]
        os.close(lowest)
        assert sum(1 for _ in walk(root)) == DEPTH + 1
        os.close(root)
        parent = os.open(tmp_path, DIRECTORY)
        delete(parent, "copy")
        os.close(parent)
    assert os.listdir(tmp_path) == ["deep"]


def test_delete_follows_no_link(tmp_path: Path) -> None:
    trees.build(str(tmp_path), {
        "victim": {"f": "precious"},
        "tree": {"to-dir": Symlink(target="../victim"), "d": {"to-file": Symlink(target="../../victim/f")}},
    })  # fmt: skip
    parent = os.open(tmp_path, DIRECTORY)
    delete(parent, b"tree")
    with pytest.raises(FileNotFoundError):
        delete(parent, "tree")
    os.symlink("victim", tmp_path / "link")
    with pytest.raises(NotADirectoryError):
        delete(parent, "link")
    os.close(parent)
    trees.assert_tree(str(tmp_path), {"victim": {"f": "precious"}, "link": Symlink(target="victim")})


def test_nothing_crosses_a_mount(tmp_path: Path) -> None:
    """Not even one of the same file system, which its device number does not give away."""
    trees.build(str(tmp_path), {"victim": {"d": {"f": "precious"}}, "tree": {"place": {}, "f": ""}})
    mount_all([Mount("bind", str(tmp_path / "victim"))], str(tmp_path / "tree/place"))
    parent = os.open(tmp_path, DIRECTORY)
    try:
        with pytest.raises(OSError, match="cross-device"):
            delete(parent, "tree")
        with pytest.raises(OSError, match="cross-device"):
            copy_tree(str(tmp_path / "tree"), str(tmp_path / "copy"))
    finally:
        os.close(parent)
        unmount_all(str(tmp_path / "tree/place"))
    trees.assert_tree(str(tmp_path / "victim"), {"d": {"f": "precious"}})


def test_usage_counts_a_file_once(tmp_path: Path) -> None:
    trees.build(str(tmp_path), {"f": os.urandom(1 << 20), "g": HardLink("f"), "hole": File(b"", holes=1 << 26)})
    usage = disk_usage(str(tmp_path))
    assert usage.inodes == 3
    assert 1 << 20 <= usage.size < (1 << 20) + (1 << 16)


FULL: trees.Tree = {
    "plain": File("plain" * 1000, mode=0o4751, uid=1, gid=2, mtime_ns=1_234_567_890_123_456_789),
    "plain too": HardLink("plain"),
    "empty": "",
    "huge and sparse": File(b"begin", holes=1 << 25),
    "capable": File("x", xattrs={"security.capability": bytes.fromhex("01000002002" + "0" * 29)}, uid=9),
    "noted": File("x", xattrs={"user.note": b"\0\xff", "trusted.overlay.opaque": b"y"}),
    "link": Symlink(target="/no/where", uid=3, gid=4, mtime_ns=5),
    "fifo": Special(type=stat.S_IFIFO, mode=0o620),
    "device": Special(type=stat.S_IFCHR, rdev=os.makedev(0, 0), mode=0),
    "sticky": Dir({"inside": File("x", mtime_ns=7)}, mode=0o1777, uid=5, xattrs={"user.dir": b"1"}, mtime_ns=8),
    "locked": Dir({"f": File("", mode=0)}, mode=0),
}


def test_a_copy_is_the_same(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    trees.build(str(source), FULL)
    os.link(source / "plain", source / "sticky/linked too")
    os.utime(source / "sticky", ns=(8, 8))
    os.chmod(source, 0o2750)
    os.utime(source, ns=(1, 2))
    before = trees.read(str(source))
    copy_tree(str(source), str(target))
    trees.assert_same(before, trees.read(str(target)), "in the copy")
    trees.assert_same(before, trees.read(str(source)), "in the source")
    for name in ("", "sticky"):
        assert os.stat(target / name).st_mtime_ns == os.stat(source / name).st_mtime_ns
    assert os.stat(target / "huge and sparse").st_blocks * 512 <= 1 << 16


@pytest.mark.parametrize("refused", [(), ("ficlone",), ("ficlone", "copy_file_range")])
def test_every_way_to_copy_keeps_data_and_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...]
) -> None:
    """The ways that a file system may refuse are taken away one by one; it is asked only once."""
    calls: list[str] = []

    def refuse(name: str) -> None:
        def call(*arguments: int) -> int:
            calls.append(name)
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(copytree if name == "ficlone" else os, name, call)

    for name in refused:
        refuse(name)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        with open(source / f"f{number}", "wb") as out:
            for at in (0, 1 << 20, (5 << 20) + 123):
                out.seek(at)
                out.write(os.urandom(2_500_000 if at else 5000))
            out.truncate(20 << 20)
    copy_tree(str(source), str(tmp_path / "target"))
    trees.assert_same(trees.read(str(source)), trees.read(str(tmp_path / "target")))
    for number in range(3):
        assert os.stat(tmp_path / f"target/f{number}").st_blocks <= os.stat(source / f"f{number}").st_blocks + 64
    assert calls == list(refused)


def test_a_copy_that_shares(tmp_path: Path) -> None:
    """On a file system with reflinks a copy costs no data."""
    makers = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}
    kind = next((kind for kind, maker in makers.items() if shutil.which(maker[0])), None)
    if kind is None:
        pytest.skip("neither mkfs.xfs nor mkfs.btrfs is installed: no file system here has reflinks")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 320 << 20)
    subprocess.run([*makers[kind], image], check=True)
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        trees.build(str(place), {"source": {"f": os.urandom(32 << 20)}})
        os.sync()
        free = os.statvfs(place).f_bfree * os.statvfs(place).f_bsize
        copy_tree(str(place / "source"), str(place / "target"))
        os.sync()
        assert free - os.statvfs(place).f_bfree * os.statvfs(place).f_bsize < 4 << 20
        trees.assert_same(trees.read(str(place / "source")), trees.read(str(place / "target")))
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_copy_to_another_file_system(tmp_path: Path) -> None:
    trees.build(str(tmp_path / "source"), {"f": os.urandom(3 << 20), "d": {"g": File("x", holes=1 << 22)}})
    with mounted([Mount("tmpfs", "tmpfs", ("size=32m",))]) as path:
        copy_tree(str(tmp_path / "source"), f"{path}/target")
        trees.assert_same(trees.read(str(tmp_path / "source")), trees.read(f"{path}/target"))


def test_an_empty_tree(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    copy_tree(str(tmp_path / "source"), str(tmp_path / "target"))
    trees.assert_tree(str(tmp_path / "target"), {})
    with pytest.raises(FileExistsError):
        copy_tree(str(tmp_path / "source"), str(tmp_path / "target"))
    with pytest.raises(FileNotFoundError):
        copy_tree(str(tmp_path / "missing"), str(tmp_path / "other"))
