"""A disk that a container has filled alone, to the last block and inode: what fills it can be removed."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver, probe
from drivers.disk import loop, reserve
from drivers.graph.directories import DirectorySnapshotter
from tests.children import in_child
from tests.mounting import mounted

pytestmark = pytest.mark.needs("loop", "tmpfs")

# Sizes in MiB; mkfs.xfs makes none below 300.
DISKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ext4": (64, ("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard")),
    "ext4 with blocks kept for root": (64, ("mkfs.ext4", "-q", "-m", "5", "-E", "nodiscard")),
    "ext4 with few inodes": (64, ("mkfs.ext4", "-q", "-N", "256", "-E", "nodiscard")),
    "xfs": (300, ("mkfs.xfs", "-q", "-K")),
    "btrfs": (128, ("mkfs.btrfs", "-q", "-K", "-m", "single")),
}


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty file system of its own."""
    size, command = DISKS[request.param]
    with mounted([Mount("tmpfs", "tmpfs", (f"size={size + 8}m",))]) as memory:
        image = f"{memory}/disk"
        with open(image, "wb") as file:
            file.truncate(size << 20)
        subprocess.run([*command, image], check=True, capture_output=True)
        with loop.attached(image) as device, mounted([Mount(command[0].removeprefix("mkfs."), device)]) as path:
            yield Path(path)


def fill(directory: str) -> None:
    """As a container does that nobody limits: in large pieces, in small ones, and with empty files."""
    for size in (1 << 20, 4096, 512):
        with until_full(), open(f"{directory}/log{size}", "wb", buffering=0) as file:
            while True:
                file.write(bytes(size))
    with until_full():
        for number in itertools.count():
            os.mknod(f"{directory}/empty{number:0200}")


@contextmanager
def until_full() -> Iterator[None]:
    with pytest.raises(OSError, match="No space left") as full:
        yield
    assert full.value.errno == errno.ENOSPC


@pytest.mark.parametrize("was_open", [True, False], ids=["a store that is open", "a store that is opened then"])
@pytest.mark.parametrize(
    ("disk", "name"),
    [*((disk, name) for disk in DISKS for name in ("overlay2", "fuse-aufs", "vfs")), ("btrfs", "btrfs")],
    indirect=["disk"],
)
def test_a_container_that_fills_the_disk_can_be_removed(name: str, was_open: bool, disk: Path) -> None:
    root = str(disk / "root")
    found = probe(name, str(disk), {})
    if not found.works:
        pytest.skip(f"{name}: {found.reason}")
    driver = open_driver(name, root)
    driver.prepare("unpack")
    driver.commit("image", "unpack")
    mounts = driver.prepare("container", "image")
    driver.prepare("other", "image")
    if not was_open:
        driver.close()
    with mounted(mounts) as path:
        fill(path)
    if not was_open:
        driver = open_driver(name, root)
    driver.remove("container")
    assert {info.name for info in driver.walk()} == {"image", "other"}
    driver.cleanup()
    driver.check_invariants()
    driver.close()
    driver = open_driver(name, root)  # takes the reserve again
    driver.close()
    # The kernel gives the blocks of a subvolume back when it gets round to it.
    assert name == "btrfs" or reserve.is_whole(f"{root}/metadata.db-reserve")


def removed_by_halves(root: str) -> None:
    """Killed where there was no room for a new name: the row has gone, and the directory has its number still."""
    driver = open_driver("btrfs", root)
    assert isinstance(driver, DirectorySnapshotter)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(driver._layout, "discard", lambda name: os._exit(9 if name.isdecimal() else 1))
        driver.remove("killed")


@pytest.mark.needs("program:mkfs.btrfs")
@pytest.mark.parametrize("was_open", [True, False], ids=["a store that is open", "a store that is opened then"])
def test_a_container_that_fills_the_file_of_the_btrfs_driver_can_be_removed(was_open: bool) -> None:
    with mounted([Mount("tmpfs", "tmpfs", ("size=300m",))]) as memory:
        root, options = f"{memory}/root", {"btrfs.loopsize": "256M"}
        driver = open_driver("btrfs", root, options)
        driver.prepare("unpack")
        driver.commit("image", "unpack")
        mounts = driver.prepare("container", "image")
        driver.prepare("killed", "image")
        if not was_open:
            driver.close()
        with mounted(mounts) as path:
            fill(path)
        assert in_child(lambda: removed_by_halves(root)).wait() == 9
        if not was_open:
            driver = open_driver("btrfs", root)
        driver.cleanup()
        driver.check_invariants()
        driver.remove("container")
        assert {info.name for info in driver.walk()} == {"image"}
        driver.cleanup()
        driver.check_invariants()
        driver.close()
