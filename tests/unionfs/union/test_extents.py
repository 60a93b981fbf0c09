"""Ranges of files: what a union does with them is what the branch's file system does."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.trees import build
from tests.unionfs.inprocess import ROOT, content, create, opened, union, walk
from unionfs.linux import consts, files, mounts

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

BLOCK = 4096
DATA = b"".join(bytes([number]) * BLOCK for number in range(1, 9))

MODES = {
    "preallocate": (0, len(DATA), BLOCK),
    "preallocate beyond the end": (consts.FALLOC_FL_KEEP_SIZE, len(DATA), 4 * BLOCK),
    "punch": (consts.FALLOC_FL_PUNCH_HOLE | consts.FALLOC_FL_KEEP_SIZE, BLOCK, 2 * BLOCK),
    "punch unaligned": (consts.FALLOC_FL_PUNCH_HOLE | consts.FALLOC_FL_KEEP_SIZE, 100, 2 * BLOCK),
    "punch without its companion": (consts.FALLOC_FL_PUNCH_HOLE, BLOCK, BLOCK),
    "collapse": (consts.FALLOC_FL_COLLAPSE_RANGE, BLOCK, 2 * BLOCK),
    "collapse unaligned": (consts.FALLOC_FL_COLLAPSE_RANGE, 1, BLOCK),
    "zero": (consts.FALLOC_FL_ZERO_RANGE, 7 * BLOCK, 3 * BLOCK),
    "zero, keeping the size": (consts.FALLOC_FL_ZERO_RANGE | consts.FALLOC_FL_KEEP_SIZE, 7 * BLOCK, 3 * BLOCK),
    "insert": (consts.FALLOC_FL_INSERT_RANGE, 2 * BLOCK, BLOCK),
    "unshare": (consts.FALLOC_FL_UNSHARE_RANGE, 0, len(DATA)),
    "nothing": (0, 0, 0),
    "before the start": (0, -1, 10),
    "all there is": (0, 0, (1 << 63) - 1),
}


@pytest.fixture(params=["disk", "tmpfs"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on the file system of the temporary directory, or on a tmpfs: they differ in what they can."""
    if request.param == "disk":
        yield tmp_path
        return
    mounts.mount("test", str(tmp_path), "tmpfs")
    yield tmp_path
    mounts.umount2(str(tmp_path))


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def holes(seek: object, size: int) -> list[tuple[int, int]]:
    """The data ranges of a file that `seek(offset, whence)` walks."""
    found, offset = [], 0
    while offset < size:
        try:
            start = seek(offset, os.SEEK_DATA)  # type: ignore[operator]
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        offset = seek(start, os.SEEK_HOLE)  # type: ignore[operator]
        found.append((start, offset))
    return found


@pytest.mark.needs("tmpfs")
@pytest.mark.parametrize("lower", [False, True], ids=["upper", "lower"])
@pytest.mark.parametrize("name", MODES)
def test_allocating_as_the_branch_does(base: Path, name: str, lower: bool) -> None:
    """The same bytes, size, holes, room and errno as on a file beside the branches; a lower one is copied up first."""
    mode, offset, length = MODES[name]
    plain = os.open(base / "plain", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(plain, DATA, 0)
        expected = 0
        try:
            files.fallocate(plain, mode, offset, length)
        except OSError as error:
            expected = error.errno or 0
        build(str(base / ("low" if lower else "up")), {"f": DATA.decode("latin1")})
        with union(base) as fs:
            ino = walk(fs, "f")
            with opened(fs, ino, os.O_RDWR) as fh:
                with fails(expected) if expected else contextlib.nullcontext():
                    fs.fallocate(fh, mode, offset, length)
                size = fs.getattr(ino).st.st_size
                assert fs.read(fh, 0, 1 << 20) == os.pread(plain, 1 << 20, 0)
                assert size == os.fstat(plain).st_size
                assert fs.getattr(ino).st.st_blocks * 512 == allocated(plain)
                assert holes(lambda *at: fs.lseek(fh, *at), size) == holes(lambda *at: os.lseek(plain, *at), size)
        if lower:
            assert (base / "low" / "f").read_bytes() == DATA
    finally:
        os.close(plain)


def test_allocating_through_a_reader(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"f": "x"})
    with union(tmp_path) as fs, opened(fs, walk(fs, "f")) as fh, fails(errno.EBADF):
        fs.fallocate(fh, 0, 0, 10)


def test_holes_of_a_lower_file_and_of_its_copy(tmp_path: Path) -> None:
    """A reader opened before the copy-up asks the copy afterwards: the hole that is filled there is data for it too."""
    size = 64 * BLOCK
    os.makedirs(tmp_path / "low")
    with open(tmp_path / "low" / "f", "wb") as file:
        os.pwrite(file.fileno(), b"d" * BLOCK, 8 * BLOCK)
        file.truncate(size)
    with union(tmp_path) as fs:
        ino = walk(fs, "f")
        with opened(fs, ino) as reader:
            data = [(8 * BLOCK, 9 * BLOCK)]
            assert holes(lambda *at: fs.lseek(reader, *at), size) == data
            with opened(fs, ino, os.O_WRONLY) as writer:
                assert holes(lambda *at: fs.lseek(reader, *at), size) == data, "the copy has the same holes"
                fs.write(writer, 32 * BLOCK, b"n" * BLOCK)
            assert holes(lambda *at: fs.lseek(reader, *at), size) == [*data, (32 * BLOCK, 33 * BLOCK)]
            with fails(errno.ENXIO):
                fs.lseek(reader, size, os.SEEK_DATA)
            for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
                with fails(errno.EINVAL):
                    fs.lseek(reader, 0, whence)


@pytest.mark.parametrize("source", ["lower", "upper"])
def test_copying_between_files(tmp_path: Path, source: str) -> None:
    build(str(tmp_path / "low"), {"lower": "0123456789"})
    with union(tmp_path) as fs:
        target = create(fs, ROOT, b"target", b"----------")
        create(fs, ROOT, b"upper", b"0123456789")
        with opened(fs, walk(fs, source)) as reader, opened(fs, target, os.O_WRONLY) as writer:
            assert fs.copy_file_range(reader, 2, writer, 4, 3) == 3
            assert fs.copy_file_range(reader, 8, writer, 10, 100) == 2, "to the end"
            assert fs.copy_file_range(reader, 10, writer, 0, 100) == 0, "at the end"
            with fails(errno.EINVAL):
                fs.copy_file_range(reader, 0, writer, 0, 1, 1)
            with fails(errno.EBADF):
                fs.copy_file_range(writer, 0, reader, 0, 1)
        assert content(fs, target) == b"----234---89"


def test_copying_within_a_file(tmp_path: Path) -> None:
    """From the reader of a lower file into its own copy: the reader's is the copy by then. Overlapping ranges are
    refused, as by one file system."""
    build(str(tmp_path / "low"), {"f": "0123456789"})
    with union(tmp_path) as fs:
        ino = walk(fs, "f")
        with opened(fs, ino) as reader, opened(fs, ino, os.O_WRONLY) as writer:
            fs.write(writer, 0, b"new")
            assert fs.copy_file_range(reader, 0, writer, 7, 3) == 3
            with fails(errno.EINVAL):
                fs.copy_file_range(reader, 0, writer, 2, 5)
        assert content(fs, ino) == b"new3456new"
    assert (tmp_path / "low" / "f").read_bytes() == b"0123456789"


def test_a_long_copy_is_cut(tmp_path: Path) -> None:
    """So that the server has time for others, and the caller for signals."""
    os.makedirs(tmp_path / "low")
    with open(tmp_path / "low" / "f", "wb") as file:
        file.truncate(1 << 30)
    with union(tmp_path) as fs:
        target = create(fs, ROOT, b"target")
        with opened(fs, walk(fs, "f")) as reader, opened(fs, target, os.O_WRONLY) as writer:
            assert fs.copy_file_range(reader, 0, writer, 0, 1 << 30) == 1 << 27


@pytest.mark.needs("tmpfs")
def test_copying_across_file_systems_is_left_to_the_caller(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"f": "0123456789"})
    os.mkdir(tmp_path / "up")
    mounts.mount("test", str(tmp_path / "up"), "tmpfs")
    try:
        with union(tmp_path) as fs:
            target = create(fs, ROOT, b"target", b"old")
            with opened(fs, walk(fs, "f")) as reader, opened(fs, target, os.O_WRONLY) as writer:
                with fails(errno.EXDEV):
                    fs.copy_file_range(reader, 0, writer, 0, 10)
            assert content(fs, target) == b"old"
    finally:
        mounts.umount2(str(tmp_path / "up"))


@pytest.mark.needs("loop", "program:mkfs.xfs")
def test_copies_share_extents_where_they_can(tmp_path: Path) -> None:
    """On xfs: a copy of 64 MiB takes no room, be it from a lower file or within the writable branch."""
    size = 64 << 20
    image, home = tmp_path / "image", tmp_path / "home"
    home.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, home], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"xfs cannot be mounted: {mounted.stderr.strip()}")
    try:
        (home / "low").mkdir()
        (home / "low" / "f").write_bytes(b"x" * size)
        with union(home) as fs:
            os.sync()
            before = os.statvfs(home).f_bfree
            source = walk(fs, "f")
            for name in (b"one", b"two"):
                copy = create(fs, ROOT, name)
                with opened(fs, source) as reader, opened(fs, copy, os.O_WRONLY) as writer:
                    assert fs.copy_file_range(reader, 0, writer, 0, size) == size
                source = copy
            assert content(fs, source) == b"x" * (1 << 20)
            fs.syncfs()
            taken = (before - os.statvfs(home).f_bfree) * os.statvfs(home).f_frsize
            assert taken < size // 8
    finally:
        subprocess.run(["umount", home], check=True)
