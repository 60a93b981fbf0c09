"""What the tests of btrfs make and look at."""

from __future__ import annotations

import os
from pathlib import Path

from drivers.api import Snapshotter
from drivers.btrfs import qgroups, subvolumes
from drivers.catalog import open_driver
from drivers.disk import loop
from drivers.disk.trees import DIRECTORY
from drivers.graph.directories import DirectorySnapshotter
from unionfs.linux import consts, mounts

MIB = 1 << 20
GIB = 1 << 30


def opened(root: str, **options: str) -> DirectorySnapshotter:
    driver = open_driver("btrfs", root, {f"btrfs.{name}": value for name, value in options.items()})
    assert isinstance(driver, DirectorySnapshotter)
    return driver


def layer(driver: Snapshotter, name: str) -> str:
    assert isinstance(driver, DirectorySnapshotter)
    with driver._store.read() as transaction:
        return driver._layer(transaction.get(name))


def on(path: str) -> int:
    return os.open(path, DIRECTORY)


def on_snapshots(root: str) -> int:
    """A descriptor of where the root's snapshots are."""
    if not os.path.exists(f"{root}/btrfs.img"):
        return on(f"{root}/snapshots")
    with loop.attached(f"{root}/btrfs.img") as device:
        context = mounts.fsopen("btrfs")
        mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "source", device)
        mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
        tree = mounts.fsmount(context)
        fd = os.open(".", DIRECTORY, dir_fd=tree)
        os.close(context)
        os.close(tree)
    return fd


def size_of(root: str) -> int:
    fd = on_snapshots(root)
    status = os.fstatvfs(fd)
    os.close(fd)
    return status.f_blocks * status.f_frsize


def make_subvolume(path: str) -> None:
    fd = on(os.path.dirname(path))
    try:
        subvolumes.create(fd, os.path.basename(path))
    finally:
        os.close(fd)


def all_subvolumes(root: str) -> set[int]:
    """Of the whole file system, those whose blocks are still being given back not among them."""
    fd = on_snapshots(root)
    try:
        found, pending = set(), [subvolumes.FS_TREE]
        while pending:
            below = [reference.number for reference in subvolumes.children(fd, pending.pop())]
            found.update(below)
            pending += below
        return found
    finally:
        os.close(fd)


def devices(root: str) -> list[str]:
    """The loop devices of the root's image."""
    found = []
    for name in os.listdir("/sys/block"):
        backing = Path(f"/sys/block/{name}/loop/backing_file")
        try:
            if backing.read_text().strip() == os.path.realpath(f"{root}/btrfs.img"):
                found.append(name)
        except OSError:
            continue
    return found


def groups_of(root: str) -> list[int]:
    """The quota groups, once the kernel has given back what was destroyed."""
    fd = on_snapshots(root)
    try:
        while True:
            found = qgroups.groups(fd)
            if all(group >> 48 or group in (subvolumes.FS_TREE, *all_subvolumes(root)) for group in found):
                return found
            subvolumes.sync(fd)  # wakes the cleaner
    finally:
        os.close(fd)
