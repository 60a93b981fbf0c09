"""Inode numbers stay: over copy-up, remounts, other devices for the same file systems, and as a layer below others.

Where a number depends on which file system a file is on, so does the link between the names of a copied-up file: losing
the one is losing the other, and written data with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trees import HardLink, Symlink, Tree, build
from tests.unionfs.inprocess import ROOT, create, differences, snapshot, union, walk, write
from unionfs.linux import consts, mounts

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

LOWER: Tree = {"nested": {"f": "x", "g": HardLink("f")}, "h": "y", "other": "z", "l": Symlink("h")}


def test_on_one_file_system_they_are_the_branches_own(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        before = snapshot(fs)
        for path, seen in before.items():
            assert seen.ino == os.lstat(tmp_path / "low" / path).st_ino
        write(fs, walk(fs, "nested/g"), b"new")
        write(fs, walk(fs, "h"), b"new")
        fs.setattr(walk(fs, "l"), uid=3)
        new = create(fs, ROOT, b"new")
        assert new == os.stat(tmp_path / "up" / "new").st_ino
        after = snapshot(fs)
    assert {path: after[path].ino for path in before} == {path: seen.ino for path, seen in before.items()}
    with union(tmp_path) as fs:
        assert not differences(after, snapshot(fs))


@pytest.mark.needs("tmpfs")
def test_on_two_file_systems(tmp_path: Path) -> None:
    """No two files share a number, whichever the branches' own are."""
    (tmp_path / "other").mkdir()
    mounts.mount("other", str(tmp_path / "other"), "tmpfs")
    try:
        build(str(tmp_path / "other" / "low"), LOWER)
        build(str(tmp_path / "low"), {f"{number}": {"sub": ""} for number in range(20)})
        lower = ("low", "other/low")
        with union(tmp_path, *lower) as fs:
            before = snapshot(fs)
            numbers = [seen.ino for path, seen in before.items() if path != "nested/g"]
            assert len(set(numbers)) == len(numbers)
            write(fs, walk(fs, "nested/f"), b"new")
            write(fs, walk(fs, "h"), b"new")
            write(fs, walk(fs, "3/sub"), b"new")
            after = snapshot(fs)
        assert {path: seen.ino for path, seen in after.items()} == {path: seen.ino for path, seen in before.items()}
        with union(tmp_path, *lower) as fs:
            assert not differences(after, snapshot(fs))
    finally:
        mounts.umount2(str(tmp_path / "other"))


def test_without_a_writable_branch(tmp_path: Path) -> None:
    """The same branches, all of them read-only."""
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        write(fs, walk(fs, "h"), b"new")
        write(fs, walk(fs, "nested/f"), b"new")
        fs.unlink(ROOT, b"other")
        before = snapshot(fs)
    with union(tmp_path, "up", "low", upper=None) as fs:
        assert not differences(before, snapshot(fs))


def test_a_layer_below_another(tmp_path: Path) -> None:
    """As when a container becomes an image. Numbers may be others than they were on top, where not every lookup asks
    whose copy a lower file is; they stay over the next copy-up, and its hard links stay one file."""
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        write(fs, walk(fs, "h"), b"new")
        write(fs, walk(fs, "nested/f"), b"new")
    with union(tmp_path, "up", "low", upper="next") as fs:
        before = snapshot(fs)
        assert before["nested/f"] == before["nested/g"]
        assert before["nested/f"].content == before["h"].content == b"new"
        write(fs, walk(fs, "nested/g"), b"next")
        write(fs, walk(fs, "h"), b"next")
        after = snapshot(fs)
        assert after["nested/f"] == after["nested/g"]
        assert after["nested/f"].content == after["h"].content == b"next"
    assert {path: seen.ino for path, seen in after.items()} == {path: seen.ino for path, seen in before.items()}
    with union(tmp_path, "up", "low", upper="next") as fs:
        assert not differences(after, snapshot(fs))


FILE_SYSTEMS = {
    "btrfs": "program:mkfs.btrfs",
    "btrfs, the upper on it too": "program:mkfs.btrfs",
    "ext4": "program:mkfs.ext4",
    "squashfs": "program:mksquashfs",
    "xfs": "program:mkfs.xfs",
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.needs("loop", program)) for kind, program in FILE_SYSTEMS.items()]
)
def test_the_lower_branch_comes_back_on_another_device(tmp_path: Path, kind: str) -> None:
    """After a reboot, say: loop devices are numbered anew, and so are btrfs's subvolumes. squashfs and xfs give the
    device's number as the file system's id."""
    image, at = tmp_path / "image", tmp_path / "at"
    at.mkdir()
    fstype = kind.partition(",")[0]
    make_image(fstype, image, at)
    low, upper = str(at / "low"), "at/up" if "upper" in kind else "up"
    with attached(image) as device, mounted(device, fstype, at):
        devices = {os.stat(path).st_dev for path in (low, f"{low}/nested")}
        with union(tmp_path, low, upper=upper) as fs:
            write(fs, walk(fs, "nested/f"), b"new")
            write(fs, walk(fs, "h"), b"new")
            before = snapshot(fs)
            assert before["nested/g"].content == b"new"
    with taken(device, tmp_path), taken_numbers(devices, tmp_path), attached(image) as other:
        assert other != device
        with mounted(other, fstype, at):
            assert os.stat(f"{low}/nested").st_dev not in devices, "the machine gave the same number again"
            with union(tmp_path, low, upper=upper) as fs:
                assert not differences(before, snapshot(fs))


def make_image(fstype: str, image: Path, at: Path) -> None:
    """LOWER in `low`; on btrfs `low/nested` is a subvolume, and `up` one whose inode numbers are those of `low`."""
    if fstype == "squashfs":
        build(str(image.with_suffix(".d")), {"low": LOWER})
        subprocess.run(["mksquashfs", image.with_suffix(".d"), image, "-quiet", "-no-progress"], check=True)
        return
    with open(image, "wb") as empty:
        empty.truncate(512 << 20)
    subprocess.run([f"mkfs.{fstype}", "-q", image], check=True)
    with attached(image) as device, mounted(device, fstype, at):
        if fstype == "btrfs":
            for name in ("low", "low/nested"):
                subprocess.run(["btrfs", "-q", "subvolume", "create", at / name], check=True)
            build(str(at / "low" / "nested"), LOWER["nested"])  # type: ignore[arg-type]
            build(str(at / "low"), {name: entry for name, entry in LOWER.items() if name != "nested"})
            subprocess.run(["btrfs", "-q", "subvolume", "snapshot", at / "low", at / "up"], check=True)
            for name in os.listdir(at / "up"):
                path = at / "up" / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            build(str(at / "low"), LOWER)


@contextlib.contextmanager
def attached(image: Path, *device: str) -> Iterator[str]:
    """A loop device on `image`: `device`, or a free one."""
    where = device or ("--find", "--show")
    done = subprocess.run(["losetup", *where, image], check=True, capture_output=True, text=True)
    name = device[0] if device else done.stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)


@contextlib.contextmanager
def mounted(device: str, fstype: str, at: Path) -> Iterator[None]:
    try:
        mounts.mount(device, str(at), fstype, consts.MS_RDONLY if fstype == "squashfs" else 0)
    except OSError as error:
        if error.errno == errno.ENODEV:
            pytest.skip(f"this kernel has no {fstype}")
        raise
    try:
        yield
    finally:
        mounts.umount2(str(at))


@contextlib.contextmanager
def taken(device: str, base: Path) -> Iterator[None]:
    """`device` is somebody's: ours, or that of who was quicker."""
    other = base / "other"
    with open(other, "wb") as empty:
        empty.truncate(1 << 20)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(subprocess.CalledProcessError):
            held.enter_context(attached(other, device))
        yield


@contextlib.contextmanager
def taken_numbers(devices: set[int], base: Path) -> Iterator[None]:
    """None of `devices` is given to a new mount, as far as they are numbers of no device: the kernel gives the lowest
    that is free (get_anon_bdev(), fs/super.c)."""
    highest = max((os.minor(device) for device in devices if os.major(device) == 0), default=-1)
    at = base / "numbers"
    at.mkdir()
    count = 0
    try:
        while highest >= 0:
            mounts.mount("number", str(at), "tmpfs")
            count += 1
            if os.minor(os.stat(at).st_dev) > highest:
                break
        yield
    finally:
        for _ in range(count):
            mounts.umount2(str(at))
