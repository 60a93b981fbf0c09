"""Making, settling and growing the file system on a thin device.

It is mounted for that without a place in any tree (fsmount(2)): nobody sees it, and however this process dies, the
mount ends with its descriptor. Growing is an ioctl on it, as resize2fs and xfs_growfs do it on line.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from drivers.devicemapper import superblock
from drivers.disk import programs
from drivers.errors import Unavailable
from unionfs.linux import consts, mounts

PACKAGE = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}

# Nothing is discarded, for nothing is mapped yet. ext4's inode tables and journal are written now: otherwise the kernel
# would write them later, in the background, again in every layer.
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-K"),
}
# All layers of XFS have the base's UUID, and XFS mounts each only once otherwise.
MOUNT_OPTIONS = {"ext4": (), "xfs": ("nouuid",)}

EXT4_IOC_RESIZE_FS = 0x40086610  # _IOW('f', 16, __u64), fs/ext4/ext4.h
XFS_IOC_FSGROWFSDATA = 0x4010586E  # _IOW('X', 110, struct xfs_growfs_data), fs/xfs/libxfs/xfs_fs.h
_XFS_GROWFS_DATA = struct.Struct("=QI4x")


def make(node: str, filesystem: str, arguments: Sequence[str]) -> superblock.Superblock:
    """Make an empty file system whose root is a plain 0755 directory, and write it to the disk.

    Raises Unavailable with what mkfs said.
    """
    run([*_MKFS[filesystem], *arguments, node], PACKAGE[filesystem])
    with opened(node, filesystem) as root:
        try:
            os.rmdir("lost+found", dir_fd=root)  # fsck makes it again when it needs one
        except FileNotFoundError:
            pass
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        try:
            os.fchmod(fd, 0o755)
        finally:
            os.close(fd)
    sync(node)
    return check(node, filesystem)


def check(node: str, filesystem: str, uuid: bytes | None = None) -> superblock.Superblock:
    """The superblock of what must be a `filesystem`, and must have the `uuid` if one is given. Raises Unavailable."""
    found = superblock.read(node)
    if found is None or found.type != filesystem or uuid not in (None, found.uuid):
        has = "no file system that we know" if found is None else f"{found.type} {found.uuid.hex()}"
        wanted = filesystem if uuid is None else f"{filesystem} {uuid.hex()}"
        raise Unavailable(
            f"the base device {node} holds {has} and should hold {wanted}: the pool is not the one that this root "
            "was made with; give it back its devices, or make a new root"
        )
    return found


def settle(node: str, filesystem: str) -> None:
    """Bring what an unclean unmount left in the log into place, so that the device can be mounted read-only.

    XFS does not say in its superblock whether it has to, and is mounted to find out.
    """
    found = superblock.read(node)
    if found is not None and found.needs_recovery is not False:
        with opened(node, filesystem):
            pass


def grow(node: str, filesystem: str, size: int) -> None:
    """Grow the file system to fill its device of `size` bytes; nothing if it does so already."""
    found = check(node, filesystem)
    blocks = size // found.block_size
    if blocks * found.block_size <= found.size:
        return
    with opened(node, filesystem) as root:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        try:
            if filesystem == "ext4":
                fcntl.ioctl(fd, EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
            else:
                fcntl.ioctl(fd, XFS_IOC_FSGROWFSDATA, _XFS_GROWFS_DATA.pack(blocks, found.imaxpct))
        except OSError as error:
            raise OSError(error.errno, f"{filesystem} cannot grow to {size} bytes: {error.strerror}", node) from None
        finally:
            os.close(fd)


def sync(node: str) -> None:
    """Bring what was written to the device to the disk, and the pool's metadata that say where: a flush makes the pool
    commit (drivers/md/dm-thin.c, process_deferred_bios)."""
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def opened(node: str, filesystem: str) -> Iterator[int]:
    """The root directory of the file system, mounted read-write nowhere. When the `with` ends it is unmounted."""
    context = mounts.fsopen(filesystem)
    try:
        mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "source", node)
        for option in MOUNT_OPTIONS[filesystem]:
            mounts.fsconfig(context, consts.FSCONFIG_SET_FLAG, option)
        mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
        root = mounts.fsmount(context)
    finally:
        os.close(context)
    try:
        yield root
    finally:
        os.close(root)


def run(command: Sequence[str], package: str) -> None:
    """Run a program of the system. Raises Unavailable with what it said, or with the package that it is in."""
    path = programs.find(command[0])
    if path is None:
        raise Unavailable(f"{command[0]} is not installed: apt-get install {package}")
    done = subprocess.run(
        [path, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{' '.join(command)} failed: {said[-1] if said else done.returncode}")
