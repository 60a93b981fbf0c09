"""Pictures of a disk: what a machine finds whose power fails at that moment.

A file system lies in a file, mounted through a loop device; the file lies on XFS, where a copy of it that shares all
blocks (FICLONE) is made at once. What the kernel has not yet written to the device is not in the copy.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h
_BTRFS_START_SYNC, _BTRFS_WAIT_SYNC = 0x80089418, 0x40089416  # linux/btrfs.h

# The smallest that each mkfs makes, and room for an image and a few containers.
SIZES = {"ext4": 96 << 20, "xfs": 320 << 20, "btrfs": 256 << 20}


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def make(image: Path, kind: str, size: int = 0) -> None:
    """A file with an empty file system in it."""
    image.touch()
    os.truncate(image, size or SIZES[kind])
    force = "-F" if kind == "ext4" else "-f"
    subprocess.run([f"mkfs.{kind}", "-q", force, image], check=True)


class Disk:
    """A file system of the kind at `place`, and pictures of it beside its image."""

    def __init__(self, kind: str, pool: Path, place: Path) -> None:
        self.kind, self.place = kind, place
        self.image = pool / "disk"
        self._count = 0

    @contextmanager
    def away(self) -> Iterator[None]:
        """Not mounted for a while: two file systems with one identity cannot both be, on XFS and older btrfs."""
        subprocess.run(["umount", self.place], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "loop", self.image, self.place], check=True)

    def picture(self) -> Path:
        self._count += 1
        path = self.image.with_name(f"cut-{os.getpid()}-{self._count}")
        with open(self.image, "rb") as source, open(path, "wb") as target:
            fcntl.ioctl(target, _FICLONE, source.fileno())
        return path

    def commit_names(self) -> None:
        """What the file system does by itself every few seconds: names and inodes reach the disk, in the order in which
        they changed. What was written to files since need not."""
        fd = os.open(self.place / "clock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if self.kind == "btrfs":
                transaction = fcntl.ioctl(fd, _BTRFS_START_SYNC, bytes(8))
                fcntl.ioctl(fd, _BTRFS_WAIT_SYNC, transaction)
            else:
                os.pwrite(fd, struct.pack("Q", self._count), 0)
                os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def disk(kind: str, directory: Path) -> Iterator[Disk]:
    """An empty one, mounted at DIRECTORY/disk."""
    make(directory / "pool.img", "xfs", 4 << 30)
    with mounted(directory / "pool.img", directory / "pool") as pool:
        make(pool / "disk", kind)
        with mounted(pool / "disk", directory / "disk") as place:
            yield Disk(kind, pool, place)
