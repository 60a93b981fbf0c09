"""What the direct transport passes on and pyfuse3 does not, asked of the kernel as programs ask."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.mounting import Union
from tests.trees import Tree, build
from unionfs.linux import consts, files, mounts
from unionfs.transport import info

pytestmark = [pytest.mark.needs("fuse", "passthrough"), pytest.mark.parametrize("transport", ["direct"])]

BLOCK = 4096
DATA = b"".join(bytes([number]) * BLOCK for number in range(65, 73))
LOWER: Tree = {"low": DATA.decode(), "d": {"x": "x"}}
UPPER: Tree = {"up": DATA.decode()}


@pytest.fixture(params=["passthrough=all", "posix"])
def at(request: pytest.FixtureRequest, tmp_path: Path, mount_union: Callable[..., Union]) -> Iterator[str]:
    """A mount whose lower files the kernel reads by itself, or (posix) the server. What a failed test left immutable
    can be removed afterwards."""
    build(str(tmp_path / "low"), LOWER)
    build(str(tmp_path / "up"), UPPER)
    yield mount_union("low", "up", options=(request.param,)).path
    for name in ("low", "up", "d"):
        with contextlib.suppress(OSError), opened(str(tmp_path / "up" / name), os.O_RDONLY) as fd:
            files.set_fsxattr(fd, bytes(28))


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["low", "up"])
def test_fallocate(at: str, name: str) -> None:
    """What the kernel has in its cache goes with the bytes, and what it passes on to nobody is refused."""
    with opened(f"{at}/{name}") as fd:
        assert os.pread(fd, 1 << 20, 0) == DATA
        files.fallocate(fd, consts.FALLOC_FL_PUNCH_HOLE | consts.FALLOC_FL_KEEP_SIZE, BLOCK, BLOCK)
        files.fallocate(fd, consts.FALLOC_FL_ZERO_RANGE, 3 * BLOCK, BLOCK)
        files.fallocate(fd, 0, len(DATA), BLOCK)
        zeros = bytes(BLOCK)
        parts = [DATA[:BLOCK], zeros, DATA[2 * BLOCK : 3 * BLOCK], zeros, DATA[4 * BLOCK :], zeros]
        assert os.pread(fd, 1 << 20, 0) == b"".join(parts)
        assert os.fstat(fd).st_size == len(DATA) + BLOCK
        with fails(errno.EOPNOTSUPP):
            files.fallocate(fd, consts.FALLOC_FL_COLLAPSE_RANGE, 0, BLOCK)


def test_seek(at: str) -> None:
    with opened(f"{at}/new", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * BLOCK, 16 * BLOCK)
        os.ftruncate(fd, 64 * BLOCK)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 16 * BLOCK
        assert os.lseek(fd, 16 * BLOCK, os.SEEK_HOLE) == 17 * BLOCK
        with fails(errno.ENXIO):
            os.lseek(fd, 17 * BLOCK, os.SEEK_DATA)
        assert os.lseek(fd, -1, os.SEEK_END) == 64 * BLOCK - 1
    with opened(f"{at}/low", os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == len(DATA)


@pytest.mark.parametrize("name", ["low", "up"])
def test_copy_file_range(at: str, name: str) -> None:
    """Also of what was written before, and over what the kernel has read before."""
    with opened(f"{at}/{name}") as source, opened(f"{at}/new", os.O_RDWR | os.O_CREAT) as target:
        os.pwrite(source, b"new", 0)
        os.pwrite(target, b"-" * BLOCK, 0)
        assert os.pread(target, 10, 0) == b"-" * 10
        assert os.copy_file_range(source, target, 2 * BLOCK, 0, 100) == 2 * BLOCK
        assert os.pread(target, 1 << 20, 0) == b"-" * 100 + b"new" + DATA[3 : 2 * BLOCK]
        assert os.fstat(target).st_size == 100 + 2 * BLOCK
        assert os.copy_file_range(source, source, 3, 0, len(DATA)) == 3
        assert os.pread(source, 10, len(DATA)) == b"new"


@pytest.mark.needs("tmpfs")
def test_copying_across_branches_on_two_file_systems(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    """The union refuses, and the kernel copies by itself."""
    build(str(tmp_path / "low"), LOWER)
    (tmp_path / "up").mkdir()
    mounts.mount("test", str(tmp_path / "up"), "tmpfs")
    try:
        union = mount_union("low", "up")
        with (
            opened(f"{union.path}/low", os.O_RDONLY) as source,
            opened(f"{union.path}/new", os.O_WRONLY | os.O_CREAT) as target,
        ):
            assert os.copy_file_range(source, target, 1 << 20, 0, 0) == len(DATA)
        assert Path(union.path, "new").read_bytes() == DATA
        counted = dict(info.ask(union.path)["requests"] or {})
        assert counted.get("COPY_FILE_RANGE", 0) + counted.get("COPY_FILE_RANGE_64", 0) == 1
        union.close()
    finally:
        mounts.umount2(str(tmp_path / "up"), consts.MNT_DETACH)


def test_unnamed_files(at: str) -> None:
    with opened(f"{at}/d", os.O_RDONLY) as directory:
        fd = os.open(f"{at}/d", os.O_TMPFILE | os.O_RDWR, 0o640)
        try:
            os.write(fd, DATA)
            assert (os.fstat(fd).st_nlink, os.listdir(f"{at}/d")) == (0, ["x"])
            files.link_fd(fd, directory, b"named")
            assert (os.fstat(fd).st_nlink, sorted(os.listdir(f"{at}/d"))) == (1, ["named", "x"])
            os.write(fd, b"more")
            assert Path(f"{at}/d/named").read_bytes() == DATA + b"more"
            assert os.stat(f"{at}/d/named").st_ino == os.fstat(fd).st_ino
        finally:
            os.close(fd)
        fd = os.open(f"{at}/d", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)
        try:
            with fails(errno.ENOENT):  # so said O_EXCL
                files.link_fd(fd, directory, b"other")
        finally:
            os.close(fd)


@pytest.mark.parametrize("name", ["low", "up", "d"])
def test_inode_flags(at: str, name: str) -> None:
    """As chattr(1) and lsattr(1) do it, which open the file each time."""
    path = f"{at}/{name}"
    with opened(path, os.O_RDONLY) as fd:
        try:
            flags = files.get_flags(fd)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                raise
            pytest.skip("the temporary directory's file system has no inode flags")
        files.set_flags(fd, flags | consts.FS_NODUMP_FL | consts.FS_IMMUTABLE_FL)
    attempts: list[Callable[[], None]] = [lambda: os.chmod(path, 0o700), lambda: os.rename(path, f"{at}/new")]
    for attempt in attempts:
        with fails(errno.EPERM):
            attempt()
    with opened(path, os.O_RDONLY) as fd:
        assert files.get_flags(fd) == flags | consts.FS_NODUMP_FL | consts.FS_IMMUTABLE_FL
        assert files.get_fsxattr(fd)[0] & consts.FS_XFLAG_NODUMP
        files.set_fsxattr(fd, bytes(28))
        assert not files.get_flags(fd) & (consts.FS_NODUMP_FL | consts.FS_IMMUTABLE_FL)
    os.chmod(path, 0o700)


def test_time_of_birth(at: str, tmp_path: Path) -> None:
    def born(directory: str | Path, name: str) -> int | None:
        with opened(os.fspath(directory), os.O_RDONLY) as fd:
            return files.statx(fd, name.encode()).btime_ns

    for branch, name in (("low", "low"), ("up", "up"), ("low", "d")):
        assert born(at, name) == born(tmp_path / branch, name)
