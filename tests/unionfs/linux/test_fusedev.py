"""The ioctls of /dev/fuse, on a connection whose INIT is answered by hand."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from unionfs.linux import consts, fusedev, mounts

pytestmark = pytest.mark.needs("fuse")

FUSE_INIT_EXT = 1 << 30
FUSE_PASSTHROUGH = 1 << 37 - 32  # in flags2


@pytest.fixture
def unmounted() -> Iterator[int]:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def fuse_fd(unmounted: int, tmp_path: Path) -> Iterator[int]:
    (tmp_path / "mnt").mkdir()
    data = f"fd={unmounted},rootmode=40000,user_id=0,group_id=0"
    mounts.mount("test", str(tmp_path / "mnt"), "fuse.test", 0, data)
    try:
        request = os.read(unmounted, 1 << 17)
        unique, minor, flags2 = *struct.unpack_from("=Q", request, 8), *struct.unpack_from("=I", request, 44), 0
        if minor >= 36:
            flags2 = struct.unpack_from("=I", request, 56)[0]
        if not flags2 & FUSE_PASSTHROUGH:
            pytest.skip("this kernel has no passthrough")
        agreed = struct.pack(
            "=IIIIHHIIHHII24x", 7, minor, 0, FUSE_INIT_EXT, 12, 9, 4096, 1, 1, 0, FUSE_PASSTHROUGH, 1
        )
        os.write(unmounted, struct.pack("=IiQ", 16 + len(agreed), 0, unique) + agreed)
        yield unmounted
    finally:
        mounts.umount2(str(tmp_path / "mnt"), consts.MNT_DETACH)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_text("content")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_clone_is_another_descriptor_of_the_connection(fuse_fd: int, file: int) -> None:
    clone = fusedev.clone(fuse_fd)
    try:
        assert clone != fuse_fd
        assert not os.get_inheritable(clone)
        fusedev.backing_close(fuse_fd, fusedev.backing_open(clone, file))
    finally:
        os.close(clone)


def test_a_clone_of_what_is_not_mounted(unmounted: int) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"not permitted|Invalid argument"):
        fusedev.clone(unmounted)
    assert os.listdir("/proc/self/fd") == before


def test_backing_ids(fuse_fd: int, file: int) -> None:
    first, second = fusedev.backing_open(fuse_fd, file), fusedev.backing_open(fuse_fd, file)
    assert first > 0
    assert second > 0
    assert first != second
    for backing_id in (first, second):
        fusedev.backing_close(fuse_fd, backing_id)
    with fails(errno.ENOENT):
        fusedev.backing_close(fuse_fd, first)


def test_what_cannot_be_lent(fuse_fd: int, tmp_path: Path) -> None:
    with fails(errno.EBADF):
        fusedev.backing_open(fuse_fd, 1 << 20)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"directory|not supported"):
            fusedev.backing_open(fuse_fd, directory)
    finally:
        os.close(directory)
