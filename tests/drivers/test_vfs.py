"""Full copies as a driver, on file systems that share data and on others."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver
from drivers.disk import copytree
from drivers.disk.copytree import copy_tree
from drivers.disk.loop import attached
from drivers.graph.directories import DirectorySnapshotter
from tests import trees
from tests.contracts.snapshotter import SnapshotterContract
from tests.mounting import mounted
from unionfs.linux.files import get_flags, set_flags

MIB = 1 << 20
FS_NOCOW_FL = 0x00800000  # linux/fs.h

MAKERS = {
    "btrfs": ("mkfs.btrfs", "--quiet", "--nodiscard"),
    "ext4": ("mkfs.ext4", "-q", "-E", "nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-K"),
}


class TestVfs(SnapshotterContract):
    driver_name = "vfs"
    depth = 32


@pytest.fixture(params=["btrfs", "ext4", "xfs", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 320 MiB of each kind."""
    kind: str = request.param
    if kind == "tmpfs":
        with mounted([Mount("tmpfs", "tmpfs", ("size=320m",))]) as path:
            yield Path(path)
        return
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(320 * MIB)
    try:
        subprocess.run([*MAKERS[kind], image], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"{MAKERS[kind][0]} is not installed")
    with attached(str(image)) as device, mounted([Mount(kind, device)]) as path:
        yield Path(path)


def layer(driver: DirectorySnapshotter, name: str) -> str:
    with driver._store.read() as transaction:
        return driver._layer(transaction.get(name))


def free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def counting(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each way to copy was taken, from here on."""
    calls = {"ficlone": 0, "copy_file_range": 0, "pwrite": 0}

    def count(module: object, name: str) -> None:
        real: Callable[..., int] = getattr(module, name)

        def call(*arguments: int) -> int:
            calls[name] += 1
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    count(copytree, "ficlone")
    count(os, "copy_file_range")
    count(os, "pwrite")
    return calls


@pytest.mark.needs("loop")
def test_the_ways_that_a_file_system_has(
    place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reflink for each file where there are any, else one question, and then copies inside the kernel."""
    kind = request.node.callspec.params["place"]
    trees.build(str(place / "source"), {f"f{n}": os.urandom(20_000) for n in range(5)})
    calls = counting(monkeypatch)
    copy_tree(str(place / "source"), str(place / "target"))
    shares = kind in ("btrfs", "xfs")
    assert calls["ficlone"] == (5 if shares else 1)
    assert calls["copy_file_range"] == (0 if shares else 5)
    assert calls["pwrite"] == 0
    trees.assert_same(trees.read(str(place / "source")), trees.read(str(place / "target")))


@pytest.mark.needs("tmpfs")
def test_between_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does neither (EXDEV), and is asked once for each."""
    trees.build(str(tmp_path / "source"), {f"f{n}": os.urandom(20_000) for n in range(5)})
    calls = counting(monkeypatch)
    with mounted([Mount("tmpfs", "tmpfs", ("size=1m",))]) as path:
        copy_tree(str(tmp_path / "source"), f"{path}/target")
        trees.assert_same(trees.read(str(tmp_path / "source")), trees.read(f"{path}/target"))
    assert calls == {"ficlone": 1, "copy_file_range": 1, "pwrite": 5}


@pytest.mark.needs("loop")
def test_layers_of_sparse_files_larger_than_the_disk(place: Path) -> None:
    """Files that together are a terabyte, with little in them, and hard links of them across directories."""
    driver = open_driver("vfs", str(place / "root"))
    assert isinstance(driver, DirectorySnapshotter)
    driver.prepare("unpack")
    path = layer(driver, "unpack")
    for name in ("a", "b"):
        os.mkdir(f"{path}/{name}")
        with open(f"{path}/{name}/sparse", "wb") as file:
            for at in (0, 1 << 30, 300 << 30):
                file.seek(at)
                file.write(os.urandom(70_000))
            file.truncate(1 << 39)
    os.link(f"{path}/a/sparse", f"{path}/b/linked")
    driver.commit("base", "unpack")
    driver.prepare("child", "base")
    copy = layer(driver, "child")
    base = layer(driver, "base")
    for name in ("a/sparse", "b/sparse", "b/linked"):
        status = os.stat(f"{copy}/{name}")
        assert (status.st_size, status.st_blocks * 512 <= MIB) == (1 << 39, True)
        with open(f"{copy}/{name}", "rb") as mine, open(f"{base}/{name}", "rb") as theirs:
            for at in (0, 1 << 29, 1 << 30, 300 << 30):
                mine.seek(at)
                theirs.seek(at)
                assert mine.read(80_000) == theirs.read(80_000)
    assert os.path.samefile(f"{copy}/a/sparse", f"{copy}/b/linked")
    assert not os.path.samefile(f"{copy}/a/sparse", f"{copy}/b/sparse")
    driver.close()


@pytest.mark.needs("loop")
@pytest.mark.parametrize("place", ["btrfs"], indirect=True)
def test_a_file_that_cannot_be_shared_does_not_keep_the_others(place: Path) -> None:
    """One without copy-on-write among others: they are copies that cost nothing, and it is one that costs itself."""
    source = place / "source"
    trees.build(str(source), {"a": os.urandom(40 * MIB), "d": {"z": os.urandom(40 * MIB)}})
    fd = os.open(source / "nocow", os.O_RDWR | os.O_CREAT)
    try:
        set_flags(fd, get_flags(fd) | FS_NOCOW_FL)
        os.write(fd, os.urandom(2 * MIB))
    finally:
        os.close(fd)
    os.sync()
    before = free(place)
    copy_tree(str(source), str(place / "target"))
    os.sync()
    assert before - free(place) < 12 * MIB
    trees.assert_same(trees.read(str(source)), trees.read(str(place / "target")))


def test_a_kernel_that_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """copy_file_range(2) gives 0 for files of some file systems that can be read all the same."""
    trees.build(str(tmp_path / "source"), {"f": os.urandom(3 * MIB)})
    monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
    copy_tree(str(tmp_path / "source"), str(tmp_path / "target"))
    trees.assert_same(trees.read(str(tmp_path / "source")), trees.read(str(tmp_path / "target")))


def test_a_file_that_becomes_shorter_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.build(str(tmp_path / "source"), {"f": os.urandom(3 * MIB)})
    real = os.copy_file_range

    def cut_short(source: int, target: int, length: int, *positions: int) -> int:
        os.truncate(tmp_path / "source/f", MIB)
        return real(source, target, length, *positions)

    monkeypatch.setattr(os, "copy_file_range", cut_short)
    with pytest.raises(OSError, match="became shorter") as failed:
        copy_tree(str(tmp_path / "source"), str(tmp_path / "target"))
    assert failed.value.errno == errno.EIO
