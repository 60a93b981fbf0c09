"""What a thin pool of our own lies on: two sparse files of the root, or two block devices that were given.

    <root>/thin-pool/data        100G, sparse: takes on disk what the layers take
    <root>/thin-pool/metadata    2G, sparse: which block of data belongs to which thin device

Files are attached to loop devices that detach by themselves when the pool lets go of them. `proof` finds out whose any
of this is.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

from drivers.devicemapper import blank, direct, label
from drivers.devicemapper.ioctl import SECTOR
from drivers.devicemapper.settings import DEFAULT_DATA, DEFAULT_METADATA, Settings
from drivers.disk import loop
from drivers.disk.durable import sync_directory
from drivers.disk.ownership import check_file
from drivers.disk.sizes import show_size
from drivers.errors import Unavailable

# The roles of the two.
METADATA, DATA = "metadata", "data"


class Disk(NamedTuple):
    """An open block device: `path` is what a user calls it, `fd` is opened as drivers.devicemapper.direct wants it, and
    `number` is as tables take it."""

    role: str
    path: str
    fd: int
    number: str

    @property
    def sectors(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END) // SECTOR


class Lower(NamedTuple):
    metadata: Disk
    data: Disk


class Backing(ABC):
    """`metadata` is the path that thin_check reads."""

    metadata: str
    data: str

    @abstractmethod
    def attached(self) -> AbstractContextManager[Lower]:
        """The devices, attached for the time of the `with`, and for as long as a table has them.

        Raises Unavailable if one is missing, or is not what it should be.
        """

    @abstractmethod
    def clear(self) -> None:
        """Make new what is ours to make."""

    @abstractmethod
    def claim(self, lower: Lower, identity: bytes) -> None:
        """Raise Unavailable unless both may be written over, for a pool that has never existed."""

    @abstractmethod
    def grow(self) -> None:
        """Grow to the sizes that are asked for now."""

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
        return os.path.lexists(self.metadata)

    def check_wanted(self) -> None:
        """Raise Unavailable if a size is asked for that is less than the file's."""
        for option, path in (("dm.loopdatasize", self.data), ("dm.loopmetadatasize", self.metadata)):
            wanted = self._wanted[path]
            if wanted is not None and os.path.exists(path) and wanted < (size := os.stat(path).st_size):
                raise Unavailable(
                    f"{option}={show_size(wanted)} is less than the {show_size(size)} that {path} has: it can only be "
                    "raised"
                )

    def clear(self) -> None:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        for path, default in ((self.data, DEFAULT_DATA), (self.metadata, DEFAULT_METADATA)):
            check_file(path)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.ftruncate(fd, self._wanted[path] or default)
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directory(self._directory)
        sync_directory(os.path.dirname(self._directory))

    def claim(self, lower: Lower, identity: bytes) -> None:
        """They are files that we have just made."""

    @contextmanager
    def attached(self) -> Iterator[Lower]:
        with ExitStack() as held:
            disks = []
            for role, path in ((METADATA, self.metadata), (DATA, self.data)):
                check_file(path)
                try:
                    device = held.enter_context(loop.attached(path))
                except FileNotFoundError:
                    raise Unavailable(
                        f"{path} is missing, and the layers are in it: restore it, or make a new root"
                    ) from None
                disks.append(_open(held, role, path, device))
            yield Lower(*disks)

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
        self._force = settings.force

    def claim(self, lower: Lower, identity: bytes) -> None:
        """Those with our label are from an attempt to make the pool that did not come to an end."""
        if lower.data.number == lower.metadata.number:
            raise Unavailable(f"dm.datadev and dm.metadatadev are one device, {lower.data.path}: give two")
        for disk in lower:
            blank.check_unused(disk.path, disk.fd)
        theirs = [disk for disk in lower if not label.is_there(disk.fd, disk.sectors, disk.role, identity)]
        for disk in theirs:
            if self._force:
                blank.wipe(disk.fd)
            else:
                blank.check_blank(disk.path, disk.fd)

    def clear(self) -> None:
        pass

    @contextmanager
    def attached(self) -> Iterator[Lower]:
        with ExitStack() as held:
            try:
                yield Lower(
                    _open(held, METADATA, self.metadata, self.metadata), _open(held, DATA, self.data, self.data)
                )
            except FileNotFoundError as error:
                raise Unavailable(f"the block device {error.filename}, which the layers are on, is missing") from None

    def grow(self) -> None:
        pass

    def check_room(self) -> None:
        pass

    def how_to_grow(self) -> tuple[str, str]:
        return f"enlarge {self.data}", f"enlarge {self.metadata}"


def _open(held: ExitStack, role: str, path: str, device: str) -> Disk:
    status = os.stat(device)
    if not stat.S_ISBLK(status.st_mode):
        raise Unavailable(f"{path} is not a block device")
    try:
        fd = os.open(device, os.O_RDWR | direct.FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(f"cannot use the block device {path}: {error.strerror}") from error
    held.callback(os.close, fd)
    rdev = os.fstat(fd).st_rdev
    return Disk(role, path, fd, f"{os.major(rdev)}:{os.minor(rdev)}")
