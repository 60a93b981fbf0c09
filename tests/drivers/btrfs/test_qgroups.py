"""Quotas of subvolumes, simple and full ones, of ours and of others."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from drivers.btrfs import qgroups, subvolumes
from tests.drivers.btrfs.looking import MIB, all_subvolumes, groups_of, layer, make_subvolume, on, opened
from tests.mounting import mounted

pytestmark = pytest.mark.needs("loop", "program:mkfs.btrfs")


def fill(path: str, size: int) -> int:
    """Write up to `size` bytes to the file, and give how many were taken."""
    written = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while written < size:
            written += os.write(fd, os.urandom(min(MIB, size - written)))
        os.fsync(fd)
    except OSError as error:
        assert error.errno == errno.EDQUOT
    finally:
        os.close(fd)
    return written


def test_a_quota_counts_what_is_written(either: str) -> None:
    """And not what the parent has; what is deleted can be written again."""
    driver = opened(either)
    driver.prepare("key")
    fill(f"{layer(driver, 'key')}/big", 30 * MIB)
    driver.commit("base", "key")
    with mounted(driver.prepare("one", "base", quota=20 * MIB)) as path:
        assert driver.stat("one").quota == 20 * MIB
        assert 18 * MIB <= fill(f"{path}/f", 40 * MIB) <= 20 * MIB
        os.unlink(f"{path}/f")
        os.sync()
        assert fill(f"{path}/g", 10 * MIB) == 10 * MIB
        with open(f"{path}/big", "rb") as big:
            assert len(big.read()) == 30 * MIB
    with mounted(driver.prepare("two", "base")) as path:
        assert fill(f"{path}/f", 40 * MIB) == 40 * MIB
    driver.remove("one")
    driver.remove("two")
    assert set(groups_of(either)) == {subvolumes.FS_TREE, *all_subvolumes(either)}
    driver.check_invariants()
    driver.close()


def test_subvolumes_are_no_way_around_a_quota(root: str) -> None:
    driver = opened(root)
    with mounted(driver.prepare("key", quota=20 * MIB)) as path:
        for name in ("a", "b"):
            make_subvolume(f"{path}/{name}")
        assert fill(f"{path}/a/f", 12 * MIB) == 12 * MIB
        assert fill(f"{path}/b/f", 12 * MIB) < 9 * MIB
    driver.remove("key")
    assert groups_of(root) == [subvolumes.FS_TREE]
    driver.close()


def test_quotas_are_off_until_one_is_asked_for(either: str) -> None:
    driver = opened(either)
    driver.prepare("key")
    assert groups_of(either) == []
    driver.remove("key")
    driver.close()


@pytest.mark.parametrize("kind", [qgroups.BTRFS_QUOTA_CTL_ENABLE, qgroups.BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA])
def test_what_others_have_limited_stays(disk: Path, kind: int) -> None:
    import fcntl

    fd = on(str(disk))
    try:
        try:
            fcntl.ioctl(fd, qgroups.BTRFS_IOC_QUOTA_CTL, bytearray(qgroups._CTL.pack(kind, 0)))
        except OSError as error:
            pytest.skip(f"this kernel has no such quotas: {error.strerror}")
        subvolumes.create(fd, "theirs")
        theirs = on(str(disk / "theirs"))
        number = subvolumes.number(theirs)
        os.close(theirs)
        own = 7 << 48 | 1
        fcntl.ioctl(fd, qgroups.BTRFS_IOC_QGROUP_CREATE, qgroups._CREATE.pack(1, own))
        fcntl.ioctl(fd, qgroups.BTRFS_IOC_QGROUP_LIMIT, qgroups._LIMIT.pack(number, 2, 0, 5 * MIB, 0, 0))
        driver = opened(str(disk / "root"))
        with mounted(driver.prepare("key", quota=10 * MIB)) as path:
            assert 8 * MIB <= fill(f"{path}/f", 40 * MIB) <= 10 * MIB
        assert fill(str(disk / "theirs" / "f"), 40 * MIB) <= 5 * MIB
        driver.remove("key")
        driver.cleanup()
        assert set(groups_of(str(disk / "root"))) == {subvolumes.FS_TREE, number, own}
        driver.close()
    finally:
        os.close(fd)
