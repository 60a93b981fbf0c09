"""A power cut, without one: a picture of a disk at one moment, which is mounted afterwards as after a restart.

The file system under test lies in a file behind a loop device, the file on xfs, which shares extents. What the loop
device has finished writing is in the file's page cache; FICLONE writes that out and takes all of it at one moment, with
the file's lock held (xfs_reflink_remap_prep(), fs/xfs/xfs_reflink.c). A write under way is in the picture or not, as on
a disk; what the file system has not written to the device is not.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from unionfs.linux import files

# Sizes in MiB: the smallest that mkfs makes with its own defaults, and a little. The copies share their extents.
SIZES = {"ext4": 96, "xfs": 320, "btrfs": 256}
_STORE_SIZE = 8 << 30
_BTRFS_START_SYNC, _BTRFS_WAIT_SYNC = 0x80089418, 0x40089416  # linux/btrfs.h


@contextmanager
def store(base: Path) -> Iterator[Path]:
    """A directory on a file system that shares extents, sparse in `base`."""
    image = _made(base / "store.image", _STORE_SIZE, "xfs")
    with mounted(image, base / "store") as place:
        yield place
    image.unlink()


class Disk:
    """A file system of the kind `kind`, in a file in `home`, and the pictures taken of it, which lie beside that."""

    def __init__(self, home: Path, kind: str) -> None:
        self.kind = kind
        self.place = home / "disk"
        self.image = _made(home / "disk.image", SIZES[kind] << 20, kind)
        self._home = home
        self._count = 0

    def mounted(self) -> AbstractContextManager[Path]:
        """At `place`."""
        return mounted(self.image, self.place)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Not mounted for a while: two file systems with one identity cannot both be, on xfs and older btrfs."""
        subprocess.run(["umount", self.place], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "loop", self.image, self.place], check=True)

    def picture(self) -> Path:
        """What a power cut now would leave. Processes that share the disk take their own."""
        self._count += 1
        cut = self._home / f"cut-{os.getpid()}-{self._count}"
        source = os.open(self.image, os.O_RDONLY)
        target = os.open(cut, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            files.ficlone(target, source)
        finally:
            os.close(target)
            os.close(source)
        return cut

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
    def after_the_cut(self, cut: Path) -> Iterator[Path]:
        """The picture mounted, which replays the log in it, and then deleted. The disk itself is not mounted now."""
        with mounted(cut, self._home / "after") as place:
            yield place
        cut.unlink()

    def remove(self) -> None:
        """The disk, to make room."""
        self.image.unlink()


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """The file system in a file, at a directory that is made if missing."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _made(image: Path, size: int, kind: str) -> Path:
    image.touch()
    os.truncate(image, size)
    force = "-F" if kind == "ext4" else "-f"
    subprocess.run([f"mkfs.{kind}", "-q", force, image], check=True, stdout=subprocess.DEVNULL)
    return image
