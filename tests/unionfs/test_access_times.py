"""Times of access in the writable branch: as the mount's options say, whoever reads there, the server or the kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import Union
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("fuse", "tmpfs", "trusted-xattr")

# After any change of the inode, so that relatime has no reason to move it.
LATER = (time.time_ns() // 10**9 + 3600) * 10**9
FORMER = 5 * 10**9


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Of the writable branch `disk/up`."""
    path = tmp_path / "disk"
    path.mkdir()
    mounts.mount("disk", str(path), "tmpfs", consts.MS_RELATIME)
    (path / "up" / "d").mkdir(parents=True)
    (path / "up" / "d" / "f").write_text("text")
    (path / "up" / "d" / "link").symlink_to("f")
    yield path
    mounts.umount2(str(path), consts.MNT_DETACH)


def moved(disk: Path, union: str, before: int) -> set[str]:
    """What is read moves its time of access from `before`."""
    names = ("d", "d/f", "d/link")
    for name in names:
        os.utime(disk / "up" / name, ns=(before, FORMER), follow_symlinks=False)
    assert (Path(union) / "d" / "f").read_text() == "text"
    assert sorted(os.listdir(f"{union}/d")) == ["f", "link"]
    assert os.readlink(f"{union}/d/link") == "f"
    return {name for name in names if os.lstat(disk / "up" / name).st_atime_ns != before}


ALL = {"d", "d/f", "d/link"}


@pytest.mark.parametrize(
    ("options", "of_former", "of_later"),
    [
        ((), ALL, set()),
        (("relatime",), ALL, set()),
        (("strictatime",), ALL, ALL),
        (("noatime",), set(), set()),
        (("nodiratime",), {"d/f", "d/link"}, set()),
        (("strictatime,nodiratime",), {"d/f", "d/link"}, {"d/f", "d/link"}),
    ],
)
def test_of_the_writable_branch(
    disk: Path, mount_union: Callable[..., Union], options: tuple[str, ...], of_former: set[str], of_later: set[str]
) -> None:
    for before, expected in ((FORMER, of_former), (LATER, of_later)):  # the kernel may keep what was read once
        union = mount_union("low", "disk/up", options=options)
        assert moved(disk, union.path, before) == expected
        assert {f"d/{n}" for n in os.listdir(f"{union.path}/d")} < ALL
        union.unmount()


def test_the_branch_s_own_mount_is_left_as_it_is(disk: Path, mount_union: Callable[..., Union]) -> None:
    before = mounts.mounted_at(os.path.realpath(disk))
    mount_union("low", "disk/up", options=("noatime",))
    assert mounts.mounted_at(os.path.realpath(disk)) == before
    os.utime(disk / "up" / "d" / "f", ns=(FORMER, FORMER))
    (disk / "up" / "d" / "f").read_text()
    assert os.stat(disk / "up" / "d" / "f").st_atime_ns != FORMER


def test_without_a_word_the_disk_s_own(disk: Path, mount_union: Callable[..., Union]) -> None:
    mounts.mount("none", str(disk), None, consts.MS_REMOUNT | consts.MS_BIND | consts.MS_NOATIME)
    assert moved(disk, mount_union("low", "disk/up").path, FORMER) == set()


def test_what_the_union_shows(disk: Path, mount_union: Callable[..., Union]) -> None:
    """The time that a reader moved, and what somebody set."""
    union = mount_union("low", "disk/up", options=("strictatime",))
    path = Path(union.path, "d", "f")
    os.utime(path, ns=(LATER, FORMER))
    assert path.stat().st_atime_ns == LATER
    path.read_text()
    assert path.stat().st_atime_ns == os.stat(disk / "up" / "d" / "f").st_atime_ns != LATER
