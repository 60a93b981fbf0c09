"""The thin devices of one pool: made and deleted by messages to the pool, seen and used while they are active."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from drivers.devicemapper import ioctl, nodes
from drivers.devicemapper.ioctl import SECTOR, Device
from drivers.devicemapper.pool import Pool
from drivers.devicemapper.removal import PATIENCE, PAUSE, remove
from drivers.devicemapper.status import parse_thin
from drivers.errors import Unavailable

MAX_DEVICE = (1 << 24) - 1
BLKDISCARD = 0x1277  # linux/fs.h


class Thins:
    """`prefix` begins the dm names of the pool and its thin devices. Immutable; needs the root's lock."""

    def __init__(self, pool: Pool, prefix: str) -> None:
        self._pool = pool
        self._prefix = prefix

    def name(self, device: int) -> str:
        return f"{self._prefix}{device}"

    def create_thin(self, device: int) -> None:
        """Make an empty one. EEXIST if the number is taken."""
        self._pool.message(f"create_thin {device}")

    def create_snap(self, device: int, origin: int) -> None:
        """Make one with the content that `origin` has now. ENODATA if there is no such origin.

        An origin that may be written to has to be suspended meanwhile, which the kernel does not see to
        (thin-provisioning.rst: "to avoid corruption"). If we die in between, it stays suspended, and its I/O waits,
        until resume_all().
        """
        name = self.name(origin)
        live = ioctl.status(name)
        frozen = live is not None and live.has_table and not live.is_read_only
        if frozen:
            ioctl.suspend(name)
        try:
            self._pool.message(f"create_snap {device} {origin}")
        finally:
            if frozen:
                ioctl.resume(name)

    def delete(self, device: int, *, patience: float = PATIENCE) -> None:
        """Take the number and its blocks back; one that is not there is fine. EBUSY while it is active."""
        deadline = time.monotonic() + patience
        while True:
            try:
                self._pool.message(f"delete {device}")
                return
            except OSError as error:
                if error.errno == errno.ENODATA:
                    return
                # A device that goes by itself as it is closed loses its name first, and lets go of the pool later.
                if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(PAUSE)

    def activate(self, device: int, sectors: int, *, read_only: bool = False) -> Device:
        """Make it a block device, or find it as one: in what state an active one is does not matter.

        Raises Unavailable if the pool has no such device.
        """
        name = self.name(device)
        found = ioctl.status(name)
        if found is not None and found.is_going:
            try:
                ioctl.message(name, "@cancel_deferred_remove")
            except OSError as error:
                if error.errno not in (errno.ENXIO, errno.EBUSY):  # whoever had it open has just closed it
                    raise
                remove(name)
                found = None
        if found is None:
            ioctl.create(name)
        try:
            if found is None or not found.has_table or found.is_read_only != read_only:
                # One that is active with another table changes over to the new one as it is resumed.
                ioctl.load(name, self._pool.thin(device, sectors), read_only=read_only)
                ioctl.resume(name)
            elif found.is_suspended:
                ioctl.resume(name)
        except BaseException as error:
            remove(name, deferred=True)
            if isinstance(error, OSError) and error.errno == errno.ENODATA:
                raise Unavailable(
                    f"the thin pool {self._pool.name} has lost the thin device {device}: the pool, or the store of the "
                    "layers, has been put back to an older state"
                ) from None
            raise
        active = ioctl.status(name)
        assert active is not None
        nodes.ensure(active)
        return active

    def is_closed(self, device: int) -> bool:
        """Whether nobody has the device open, after waiting a while for anyone who only looks into it."""
        deadline = time.monotonic() + PATIENCE
        while (found := ioctl.status(self.name(device))) is not None and found.open_count:
            if time.monotonic() >= deadline:
                return False
            time.sleep(PAUSE)  # closing a block device is not an event that can be waited for
        return True

    def deactivate(self, device: int, *, patience: float = PATIENCE) -> bool:
        """Take the block device away. Whether it is gone; one that is still open goes as soon as it is closed."""
        return remove(self.name(device), deferred=True, patience=patience)

    def mapped(self, device: int) -> int:
        """The bytes of an active device for which it has blocks, its own or shared."""
        sectors = parse_thin(ioctl.target_status(self.name(device)).parameters)
        if sectors is None:
            self._pool.check_works()
            raise Unavailable(f"the thin device {self.name(device)} has failed; dmesg says why")
        return sectors * SECTOR

    def discard(self, device: int, sectors: int) -> None:
        """Give the blocks that only this device has back to what the pool lies on. EOPNOTSUPP where that cannot be."""
        active = self.activate(device, sectors)
        fd = os.open(nodes.ensure(active), os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", 0, sectors * SECTOR))
        finally:
            os.close(fd)

    def active(self) -> set[int]:
        """The numbers of all devices of this root, with a table or without."""
        found = set()
        for name in ioctl.devices():
            number = name.removeprefix(self._prefix)
            if number != name and number.isdecimal():
                found.add(int(number))
        return found

    def resume_all(self) -> None:
        """Let the devices that somebody died holding go on."""
        for device in self.active():
            found = ioctl.status(self.name(device))
            if found is not None and found.has_table and found.is_suspended:
                ioctl.resume(self.name(device))
