"""What a thin pool of our own lies on: two sparse files of the root, or two block devices that were given.

    <root>/thin-pool/data        100G, sparse: takes on disk what the layers take
    <root>/thin-pool/metadata    2G, sparse: which block of data belongs to which thin device

Files are attached to loop devices that detach by themselves when the pool lets go of them.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from drivers import loop
from drivers.devicemapper.ioctl import SECTOR
from drivers.devicemapper.options import DEFAULT_DATA, DEFAULT_METADATA, Settings
from drivers.durable import sync_directory
from drivers.errors import Unavailable
from drivers.sizes import show_size

_SUPERBLOCK = 4096  # bytes: a pool whose metadata begin with so many zeros is new to the kernel


class Lower(NamedTuple):
    """Two open block devices: their numbers as tables take them, and sizes in sectors."""

    metadata: str
    data: str
    metadata_sectors: int
    data_sectors: int


class Backing(ABC):
    """`metadata` is the path that thin_check reads."""

    metadata: str
    data: str

    @abstractmethod
    def claim(self) -> None:
        """Raise Unavailable if something else's is there. Asked once, before anything is changed."""

    @abstractmethod
    def clear(self) -> None:
        """Make it new: what claim() has allowed, and every other attempt that did not come to an end."""

    @abstractmethod
    def attached(self) -> Iterator[Lower]:
        """A context: the devices for the time of the `with`, and for as long as a table has them."""

    @abstractmethod
    def grow(self) -> None:
        """Grow to the sizes that are asked for by now."""

    @abstractmethod
    def check_room(self) -> None:
        """Raise OSError (ENOSPC) if what it lies on is full itself."""

    @abstractmethod
    def how_to_grow(self) -> tuple[str, str]:
        """What a user does for more data, and for more metadata; each begins with a verb."""


class Files(Backing):
    """See the module's text."""

    # Of the file system that the files are on: what a journal or two take, so that those in use can still be unmounted.
    LEAST = 32 << 20

    def __init__(self, root: str, settings: Settings) -> None:
        self._directory = os.path.join(root, "thin-pool")
        self.data = os.path.join(self._directory, "data")
        self.metadata = os.path.join(self._directory, "metadata")
        self._wanted = {self.data: settings.loop_data_size, self.metadata: settings.loop_metadata_size}

    def exists(self) -> bool:
        return os.path.exists(self.metadata)

    def check_wanted(self) -> None:
        """Raise Unavailable if a size is asked for that is less than the file's."""
        for option, path in (("dm.loopdatasize", self.data), ("dm.loopmetadatasize", self.metadata)):
            wanted = self._wanted[path]
            if wanted is not None and os.path.exists(path) and wanted < (size := os.stat(path).st_size):
                raise Unavailable(
                    f"{option}={show_size(wanted)} is less than the {show_size(size)} that {path} has: it can only be "
                    "raised"
                )

    def claim(self) -> None:
        pass

    def clear(self) -> None:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        for path, default in ((self.data, DEFAULT_DATA), (self.metadata, DEFAULT_METADATA)):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.ftruncate(fd, self._wanted[path] or default)
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directory(self._directory)
        sync_directory(os.path.dirname(self._directory))

    @contextmanager
    def attached(self) -> Iterator[Lower]:  # type: ignore[override]
        with ExitStack() as held:
            try:
                metadata, data = (held.enter_context(loop.attached(path)) for path in (self.metadata, self.data))
            except FileNotFoundError as error:
                raise Unavailable(
                    f"{error.filename} is missing, and the layers are in it: restore it, or make a new root"
                ) from None
            yield _lower(metadata, data)

    def grow(self) -> None:
        for path, wanted in self._wanted.items():
            if wanted is not None and wanted > os.stat(path).st_size:
                os.truncate(path, wanted)
            if device := loop.find(path):
                loop.set_capacity(device)

    def check_room(self) -> None:
        status = os.statvfs(self._directory)
        free = status.f_bavail * status.f_frsize
        if free < self.LEAST:
            raise OSError(
                errno.ENOSPC,
                f"the file system of {self._directory} has {free >> 10}K left, and the thin pool grows on it: free "
                "some space there",
            )

    def how_to_grow(self) -> tuple[str, str]:
        return "raise dm.loopdatasize", "raise dm.loopmetadatasize"


class Devices(Backing):
    """dm.datadev and dm.metadatadev."""

    def __init__(self, settings: Settings) -> None:
        self.data, self.metadata = settings.data_device, settings.metadata_device

    def claim(self) -> None:
        for path in (self.data, self.metadata):
            try:
                # On a block device: fails while it is mounted, or part of something (open(2)).
                os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
            except OSError as error:
                raise Unavailable(f"cannot use the block device {path}: {error.strerror}") from error
        with open(self.metadata, "rb") as device:
            if any(device.read(_SUPERBLOCK)):
                raise Unavailable(
                    f"there is something on {self.metadata}: if it may be lost, clear its beginning with "
                    f"`dd if=/dev/zero of={self.metadata} bs=4096 count=1`"
                )

    def clear(self) -> None:
        fd = os.open(self.metadata, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
        try:
            os.pwrite(fd, bytes(_SUPERBLOCK), 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextmanager
    def attached(self) -> Iterator[Lower]:  # type: ignore[override]
        try:
            yield _lower(self.metadata, self.data)
        except FileNotFoundError as error:
            raise Unavailable(f"the block device {error.filename}, which the layers are on, is missing") from None

    def grow(self) -> None:
        pass

    def check_room(self) -> None:
        pass

    def how_to_grow(self) -> tuple[str, str]:
        return f"enlarge {self.data}", f"enlarge {self.metadata}"


def _lower(metadata: str, data: str) -> Lower:
    numbers, sectors = [], []
    for path in (metadata, data):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            rdev = os.fstat(fd).st_rdev
            numbers.append(f"{os.major(rdev)}:{os.minor(rdev)}")
            sectors.append(os.lseek(fd, 0, os.SEEK_END) // SECTOR)
        finally:
            os.close(fd)
    return Lower(numbers[0], numbers[1], sectors[0], sectors[1])
