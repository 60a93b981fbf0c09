"""The btrfs of a root that is not on one: a sparse file, mounted from a loop device.

    <root>/btrfs.img     the file system; made as btrfs.img.new and renamed, so that it is there whole or not at all
    <root>/btrfs.lock    held (flock) while somebody mounts, unmounts or grows it
    <root>/snapshots     where it is mounted, privately, while a driver is open

Any number of processes use it at once. Each holds the image open with a lock that says so (an OFD lock, fcntl(2), at
the byte that is the number of its mount namespace): who closes last unmounts. Another mount namespace mounts the same
device for itself; that is one file system in two places. Who is killed leaves it mounted for the next.

The mounts of a snapshot name the loop device, which is the same in every mount namespace: a container's process that
mounts one, and the one that removes it in the end, need not see our mount. So the device stays attached while there is
a snapshot that can be mounted; otherwise the kernel detaches it with its last user (LO_FLAGS_AUTOCLEAR). After a reboot
the next open attaches and mounts it again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager

from drivers import loop, programs
from drivers.btrfs import subvolumes
from drivers.directories import STORE
from drivers.errors import TimedOut, Unavailable
from drivers.locks import locked
from drivers.sizes import show_size
from drivers.trees import DIRECTORY
from unionfs.linux import consts, mounts

# As docker's loop files have; less where the disk has less room now.
DEFAULT_SIZE = 100 << 30
LEAST_SIZE = 256 << 20
_MIB = 1 << 20

# fs/btrfs/fs.h, struct btrfs_super_block at BTRFS_SUPER_INFO_OFFSET: csum; fsid, bytenr, flags, magic.
_SUPER_OFFSET = 64 << 10
_SUPER = struct.Struct("=32x16s16x8s")
_MAGIC = b"_BHRfS_M"

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock, fcntl.h


class Image:
    """The image of the directory `root`, mounted from here to close(). Not thread-safe.

    With a `size` in bytes it is made that large, or is grown to it while it is in use. Raises OSError; Unavailable
    with a sentence: no mkfs.btrfs, no loop devices, a damaged or lost image, a size that is too small; TimedOut.
    """

    def __init__(self, root: str, size: int = 0) -> None:
        self.root = os.path.realpath(root)
        self.path = os.path.join(self.root, "btrfs.img")
        self.target = os.path.join(self.root, "snapshots")
        self.device = ""
        self._fd = -1
        os.makedirs(self.target, 0o700, exist_ok=True)
        with self._exclusive():
            self._make_if_missing(size)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._hold()
                self._mount()
                self._grow(size)
            except BaseException:
                self._leave()
                raise

    def close(self, let_go: Callable[[], bool]) -> None:
        """Unmount it if nobody else in this mount namespace uses it. Twice is fine.

        `let_go` is called while nobody can mount or unmount: it closes what we have open in it, and says whether the
        device can go too: no snapshot names it.
        """
        if self._fd < 0:
            let_go()
            return
        try:
            with self._exclusive():
                loop.set_autoclear(self.device, let_go())
                self._leave()
        except TimedOut:
            let_go()  # who holds the lock for so long is mounting or unmounting it
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _exclusive(self) -> AbstractContextManager[int]:
        return locked(os.path.join(self.root, "btrfs.lock"))

    def _leave(self) -> None:
        """End our use, and unmount if it was the last in this mount namespace."""
        try:
            if self._is_last():
                mounts.umount2(self.target, consts.UMOUNT_NOFOLLOW)
        except OSError as error:
            # EINVAL: it is not mounted; EBUSY: something is open in it, as in a child that we have forked.
            if error.errno not in (errno.EINVAL, errno.EBUSY):
                raise
        finally:
            os.close(self._fd)
            self._fd = -1

    def _hold(self) -> None:
        self._set_lock(fcntl.F_RDLCK)

    def _is_last(self) -> bool:
        try:
            self._set_lock(fcntl.F_WRLCK)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
        return True

    def _set_lock(self, kind: int) -> None:
        namespace = os.stat("/proc/self/ns/mnt").st_ino
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, namespace, 1, 0))

    def _make_if_missing(self, size: int) -> None:
        if os.path.lexists(self.path):
            return
        if os.path.exists(os.path.join(self.root, STORE)):
            raise Unavailable(
                f"{self.path} is missing, and all layers of {self.root} with it: restore it from a backup, or remove "
                f"{self.root} to begin anew without them"
            )
        if not size:
            room = os.statvfs(self.root)
            size = max(LEAST_SIZE, min(DEFAULT_SIZE, room.f_bavail * room.f_frsize))
        if size < LEAST_SIZE:
            raise Unavailable(f"btrfs.loopsize={show_size(size)} is too small: at least {show_size(LEAST_SIZE)}")
        new = f"{self.path}.new"
        if os.path.lexists(new):
            os.unlink(new)  # of somebody who was killed, for the lock is ours
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size // _MIB * _MIB)
            _make_file_system(new)
            os.fsync(fd)
        except BaseException:
            os.unlink(new)
            raise
        finally:
            os.close(fd)
        os.rename(new, self.path)
        directory = os.open(self.root, DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _mount(self) -> None:
        if not self._is_mounted():
            self._mount_device()
        elif self._is_read_only():
            # After an error btrfs stays read-only until it is mounted anew.
            try:
                mounts.umount2(self.target, consts.UMOUNT_NOFOLLOW)
            except OSError:
                raise self._turned_read_only() from None
            self._mount_device()
        self.device = loop.find(self.path) or ""
        if not self.device:
            raise Unavailable(f"{self.target} is mounted, and not from a loop device of {self.path}: unmount it")
        # Each time: who mounted it may have been killed before. Nobody else has to see what is mounted below it.
        mounts.mount("none", self.target, None, consts.MS_PRIVATE)
        if stat.S_IMODE(os.stat(self.target).st_mode) != 0o700:
            os.chmod(self.target, 0o700)

    def _mount_device(self) -> None:
        is_in_use = loop.find(self.path) is not None
        try:
            with loop.attached(self.path) as device:
                mounts.mount(device, self.target, "btrfs")
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise Unavailable("this kernel has no btrfs: modprobe btrfs") from error
            if error.errno == errno.EINVAL and is_in_use:  # the kernel does not make it writable again
                raise self._turned_read_only() from error
            raise Unavailable(f"cannot mount {self.path}: {error.strerror}; see dmesg for the reason") from error
        if self._is_read_only():
            raise self._turned_read_only()

    def _is_mounted(self) -> bool:
        """Whether what is at the mount point is this image, whoever has mounted it."""
        fsid, magic = _SUPER.unpack(os.pread(self._fd, _SUPER.size, _SUPER_OFFSET).ljust(_SUPER.size, b"\0"))
        if magic != _MAGIC:
            raise Unavailable(f"{self.path} is damaged: there is no btrfs in it")
        fd = os.open(self.target, DIRECTORY)
        try:
            return subvolumes.is_btrfs(fd) and subvolumes.is_root(fd) and subvolumes.uuid(fd) == fsid
        finally:
            os.close(fd)

    def _is_read_only(self) -> bool:
        return bool(os.statvfs(self.target).f_flag & os.ST_RDONLY)

    def _turned_read_only(self) -> Unavailable:
        return Unavailable(
            f"the file system in {self.path} has turned read-only after an error, most likely because the disk is "
            "full: make room, end the containers that use it, and try again; dmesg has the reason"
        )

    def _grow(self, size: int) -> None:
        """File, device, file system: each open goes on where one that was killed has stopped."""
        has = os.fstat(self._fd).st_size
        wanted = size // _MIB * _MIB
        if wanted and wanted < has:
            raise Unavailable(
                f"btrfs.loopsize={show_size(size)} is less than the {show_size(has)} that {self.path} has, and it "
                "cannot be made smaller: leave the option out"
            )
        if wanted > has:
            os.ftruncate(self._fd, wanted)
            has = wanted
        fd = os.open(self.target, DIRECTORY)
        try:
            if has - subvolumes.device_size(fd) >= _MIB:
                loop.set_capacity(self.device)
                subvolumes.grow(fd)
        finally:
            os.close(fd)


def mkfs() -> str | None:
    """The path of mkfs.btrfs; None if it is not installed."""
    return programs.find("mkfs.btrfs")


NO_MKFS = "mkfs.btrfs is not installed: apt install btrfs-progs"


def _make_file_system(path: str) -> None:
    import subprocess  # late: it is done once, and every start of a container imports this module

    program = mkfs()
    if program is None:
        raise Unavailable(NO_MKFS)
    # Metadata once: two copies in one file, on one disk, are twice the writing. Nothing to discard in a new file.
    command = [program, "--quiet", "--force", "--nodiscard", "--metadata", "single", "--data", "single", path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Unavailable(f"mkfs.btrfs cannot make {path}: {lines[-1]}")
