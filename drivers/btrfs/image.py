"""The btrfs of a root that is not on one: a sparse file, mounted from a loop device.

    <root>/btrfs.img     the file system; made as btrfs.img.new and renamed, so that it is there whole or not at all
    <root>/btrfs.lock    held (flock) while somebody mounts or grows it

Any number of processes use it at once. Each mounts it for itself and nowhere: the mount is a descriptor (fsmount(2)),
of which no other mount namespace gets a copy, and ends with its process, however that ends.

The mounts of a snapshot name the loop device, which is the same in every mount namespace: a container's process that
mounts one, and the one that removes it in the end, need not see our mount. So the device stays attached while there is
a snapshot that can be mounted; otherwise the kernel detaches it with its last user (LO_FLAGS_AUTOCLEAR). After a reboot
the next open attaches and mounts it again.

What is free in it takes no room on the disk outside. The kernel sees to that while it is mounted, but slowly, and
on unmounting it forgets what it has not come to: so we discard what we remove before that.

A file is mounted only if it is the same one as last time: the store knows the file system's uuid before the file has
its name. Somebody else's could be anything, and mounting would write to it.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress

from drivers.btrfs import subvolumes
from drivers.disk import loop, programs
from drivers.disk.durable import sync_directory
from drivers.disk.locks import locked
from drivers.disk.ownership import check_file
from drivers.disk.sizes import show_size
from drivers.disk.trees import DIRECTORY
from drivers.errors import TimedOut, Unavailable
from drivers.graph.store import Store
from unionfs.linux import consts, mounts

NAME = "btrfs.img"
# As docker's loop files have; less where the disk has less room now.
DEFAULT_SIZE = 100 << 30
LEAST_SIZE = 256 << 20
_MIB = 1 << 20
# Searching all of it for what is free costs some 50 ms, and a little for each piece: for less than this it is not done,
# and smaller pieces are left. A hundred gigabytes are a hundred thousand pieces at most.
_WORTH = 16 << 20
_PIECE = 1 << 20
# Seconds for the whole of it, most of which the kernel may need to take apart the trees of what was destroyed; and
# seconds between two looks.
_PATIENCE = 5.0
_PAUSE = 0.005

# fs/btrfs/fs.h, struct btrfs_super_block at BTRFS_SUPER_INFO_OFFSET: csum; fsid, bytenr, flags, magic.
_SUPER_OFFSET = 64 << 10
_SUPER = struct.Struct("=32x16s16x8s")
_MAGIC = b"_BHRfS_M"

# Nobody uses anything through it but us; what containers mount are mounts of their own, with flags of their own.
_ATTRIBUTES = consts.MOUNT_ATTR_NOSUID | consts.MOUNT_ATTR_NODEV | consts.MOUNT_ATTR_NOEXEC


class Image:
    """The image of the directory `root`, mounted from here to close() at the descriptor `fd`. Not thread-safe.

    With a `size` in bytes it is made that large, or is grown to it while it is in use. Raises OSError; Unavailable
    with a sentence: no mkfs.btrfs, no loop devices, an image that is damaged, lost or not ours, a size that is too
    small; TimedOut.
    """

    def __init__(self, root: str, store: Store, size: int = 0) -> None:
        self.root = root
        self.path = os.path.join(root, NAME)
        self.device = ""
        self.fd = -1
        with self._exclusive():
            self._make_if_missing(store, size)
            self._check(store)
            self._mount()
            try:
                self._grow(size)
            except BaseException:
                self.leave()
                raise

    def give_back(self, destroyed: Sequence[int]) -> None:
        """Give the disk the blocks of these subvolumes. Nothing more is begun after a few seconds: the rest is left to
        the kernel."""
        if not destroyed or self.fd < 0:
            return
        with suppress(OSError):  # EOPNOTSUPP: the disk outside has no files with holes. EIO: that is for others to say
            deadline = time.monotonic() + _PATIENCE
            subvolumes.sync(self.fd)
            for number in destroyed:
                while subvolumes.exists(self.fd, number):
                    if time.monotonic() > deadline:
                        return
                    time.sleep(_PAUSE)
            if time.monotonic() > deadline:
                return
            subvolumes.sync(self.fd)  # only then are they free
            if time.monotonic() > deadline:
                return
            if os.stat(self.path).st_blocks * 512 - subvolumes.used(self.fd) >= _WORTH:
                subvolumes.trim(self.fd, _PIECE)

    def close(self, let_go: Callable[[], bool]) -> None:
        """Unmount it. Twice is fine.

        `let_go` is called while nobody else can open it: it closes what we have open in it, and says whether the device
        can go too, because no snapshot names it.
        """
        if self.fd < 0:
            let_go()
            return
        try:
            with self._exclusive():
                loop.set_autoclear(self.device, let_go())
                self.leave()
        except TimedOut:
            let_go()  # whoever holds the lock for that long is mounting it
        finally:
            self.leave()

    def _exclusive(self) -> AbstractContextManager[int]:
        return locked(os.path.join(self.root, "btrfs.lock"))

    def leave(self) -> None:
        """Unmount it, and leave the device as it is."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _make_if_missing(self, store: Store, size: int) -> None:
        new = f"{self.path}.new"
        if os.path.lexists(self.path):
            return
        with store.read() as transaction:
            noted = transaction.mark(NAME)
            has_snapshots = bool(transaction.last_id())
        if noted is None and has_snapshots:  # made by an older version, which noted nothing
            raise self._missing()
        if noted is not None:
            if not os.path.lexists(new) or _file_system(new) != noted:
                raise self._missing()
        else:
            if os.path.lexists(new):
                os.unlink(new)  # left by somebody who was killed, for the lock is ours
            self._make(new, size)
            with store.write() as transaction:
                transaction.set_mark(NAME, _file_system(new))
        os.rename(new, self.path)
        sync_directory(self.root)

    def _make(self, new: str, size: int) -> None:
        if not size:
            room = os.statvfs(self.root)
            size = max(LEAST_SIZE, min(DEFAULT_SIZE, room.f_bavail * room.f_frsize))
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

    def _missing(self) -> Unavailable:
        return Unavailable(
            f"{self.path} is missing, and all layers of {self.root} with it: restore it from a backup, or remove "
            f"{self.root} to begin anew without them"
        )

    def _check(self, store: Store) -> None:
        """Raise Unavailable unless it is the file that the store's layers are in."""
        check_file(self.path)
        found = _file_system(self.path)
        with store.read() as transaction:
            noted = transaction.mark(NAME)
        if not found:
            raise Unavailable(
                f"{self.path} is damaged: there is no btrfs in it; restore it from a backup, or remove {self.root} to "
                "begin anew without the layers"
            )
        if noted is None:  # a root of an older version
            with store.write() as transaction:
                transaction.set_mark(NAME, found)
        elif found != noted:
            raise Unavailable(
                f"{self.path} holds the btrfs {found}, and the layers of {self.root} are in {noted}: put back the file "
                "that belongs here; nothing was changed"
            )

    def _mount(self) -> None:
        with ExitStack() as held:
            is_in_use = loop.find(self.path) is not None
            self.device = held.enter_context(loop.attached(self.path))
            try:
                context = mounts.fsopen("btrfs")
                held.callback(os.close, context)
                mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "source", self.device)
                mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "subvolid", str(subvolumes.FS_TREE))
                mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
                tree = mounts.fsmount(context, _ATTRIBUTES)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    raise Unavailable("this kernel has no btrfs: modprobe btrfs") from error
                # The kernel does not make it writable again while something has it mounted.
                if is_in_use and error.errno in (errno.EINVAL, errno.EBUSY, errno.EROFS):
                    raise self._turned_read_only() from error
                raise Unavailable(
                    f"cannot mount {self.path}: {error.strerror}; see dmesg for the reason"
                ) from error
            try:
                self.fd = os.open(".", DIRECTORY, dir_fd=tree)
            finally:
                os.close(tree)
        if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            self.leave()
            raise self._turned_read_only()
        os.fchmod(self.fd, 0o700)

    def _turned_read_only(self) -> Unavailable:
        return Unavailable(
            f"the file system in {self.path} has turned read-only after an error, most likely because the disk is "
            "full: make room, end the containers that use it, and try again; dmesg has the reason"
        )

    def _grow(self, size: int) -> None:
        """File, device, file system: each open goes on where one that was killed stopped."""
        has = os.stat(self.path).st_size
        wanted = size // _MIB * _MIB
        if wanted > has:
            os.truncate(self.path, wanted)
            has = wanted
        if has - subvolumes.device_size(self.fd) >= _MIB:
            loop.set_capacity(self.device)
            subvolumes.grow(self.fd)


def check_wanted(root: str, size: int) -> None:
    """Raise Unavailable for a size that the image of `root` cannot be given; called before it is kept as an option."""
    path = os.path.join(root, NAME)
    has = os.stat(path).st_size if os.path.exists(path) else 0
    if not has and size < LEAST_SIZE:
        raise Unavailable(f"btrfs.loopsize={show_size(size)} is too small: at least {show_size(LEAST_SIZE)}")
    if size // _MIB * _MIB < has:
        raise Unavailable(
            f"btrfs.loopsize={show_size(size)} is less than the {show_size(has)} that {path} has, and it cannot be "
            "made smaller: leave the option out"
        )


def _file_system(path: str) -> str:
    """The uuid of the btrfs in a file; "" if there is none."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fsid, magic = _SUPER.unpack(os.pread(fd, _SUPER.size, _SUPER_OFFSET).ljust(_SUPER.size, b"\0"))
    finally:
        os.close(fd)
    return fsid.hex() if magic == _MAGIC else ""


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
