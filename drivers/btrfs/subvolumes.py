"""Subvolumes of btrfs: making, copying, destroying and searching them. The ioctls of linux/btrfs.h, and no policy.

A subvolume is known by a number, the id of its tree, which is never given twice. Another subvolume may lie in any of
its directories: a container makes one with a plain ioctl that takes no privilege, and then its layer cannot be removed
before that is.

Functions take a descriptor of any directory on the file system. They raise OSError; ENOTTY where it is not a btrfs.
Most need root.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from drivers.api import Usage
from unionfs.linux import libc

# linux/btrfs.h; the size of the argument is part of the number.
BTRFS_IOC_SYNC = 0x00009408
BTRFS_IOC_RESIZE = 0x50009403
BTRFS_IOC_SUBVOL_CREATE = 0x5000940E
BTRFS_IOC_SNAP_DESTROY = 0x5000940F
BTRFS_IOC_TREE_SEARCH_V2 = 0xC0709411
BTRFS_IOC_INO_LOOKUP = 0xD0009412
BTRFS_IOC_SNAP_CREATE_V2 = 0x50009417
BTRFS_IOC_SUBVOL_GETFLAGS = 0x80089419
BTRFS_IOC_SUBVOL_SETFLAGS = 0x4008941A
BTRFS_IOC_DEV_INFO = 0xD000941E
BTRFS_IOC_FS_INFO = 0x8400941F
BTRFS_IOC_GET_SUBVOL_INFO = 0x81F8943C
BTRFS_SUBVOL_RDONLY = 1 << 1

FITRIM = 0xC0185879  # linux/fs.h
_TRIM_RANGE = struct.Struct("=3Q")  # struct fstrim_range: start, len, minlen

# linux/btrfs_tree.h
ROOT_TREE = 1
FS_TREE = 5
FIRST_FREE = 256  # the number of the first subvolume, and of the root directory of each
INODE_ITEM_KEY = 1
EXTENT_DATA_KEY = 108
ROOT_ITEM_KEY = 132
ROOT_REF_KEY = 156
_FILE_EXTENT_INLINE = 0
_LAST = (1 << 64) - 1

_VOL_ARGS = struct.Struct("=q4088s")  # struct btrfs_ioctl_vol_args: fd, name
_VOL_ARGS_V2 = struct.Struct("=qQQ32x4040s")  # struct btrfs_ioctl_vol_args_v2: fd, transid, flags, …, name
_INO_LOOKUP = struct.Struct("=QQ4080s")  # struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name
_DEV_INFO = struct.Struct("=Q16sQQ")  # struct btrfs_ioctl_dev_info_args: devid, uuid, bytes_used, total_bytes
_FS_INFO = struct.Struct("=QQ16s")  # struct btrfs_ioctl_fs_info_args: max_id, num_devices, fsid
# struct btrfs_ioctl_get_subvol_info_args: treeid, name, parent_id, dirid, generation, flags, three uuids, ctransid
_SUBVOL_INFO = struct.Struct("=Q256s4Q48sQ")
# struct btrfs_ioctl_search_key: tree_id; objectid, offset and transid, least and greatest; type, least and greatest;
# nr_items. Then, in struct btrfs_ioctl_search_args_v2, buf_size.
_SEARCH = struct.Struct("=7Q3I36xQ")
_SEARCH_HEADER = struct.Struct("=3Q2I")  # struct btrfs_ioctl_search_header: transid, objectid, offset, type, len
_SEARCH_BUFFER = 256 << 10
_ROOT_REF = struct.Struct("=QQH")  # struct btrfs_root_ref: dirid, sequence, name_len
_INODE = struct.Struct("=QQ")  # struct btrfs_inode_item: generation, transid
_EXTENT = struct.Struct("=QQBBHB")  # struct btrfs_file_extent_item: generation, ram_bytes, three encodings, type
_EXTENT_ON_DISK = struct.Struct("=QQ")  # and, unless it is inline: disk_bytenr, disk_num_bytes
assert (_VOL_ARGS.size, _VOL_ARGS_V2.size, _INO_LOOKUP.size, _SEARCH.size) == (4096, 4096, 4096, 112)
assert (_SEARCH_HEADER.size, _ROOT_REF.size, _EXTENT.size) == (32, 18, 21)

# fs/btrfs/export.h: struct btrfs_fid without a parent, in a struct file_handle.
_FILEID_BTRFS_WITHOUT_PARENT = 0x4D
_FID = struct.Struct("=QQI")
_FILE_HANDLE = struct.Struct("=Ii")
_open_by_handle_at = libc.bind("open_by_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


class Reference(NamedTuple):
    """Where a subvolume lies: its name in the directory with this inode number, in the subvolume around it."""

    number: int
    directory: int
    name: bytes


class Item(NamedTuple):
    """An item of a tree: its key, and what is in it."""

    objectid: int
    type: int
    offset: int
    data: memoryview


def uuid(fd: int) -> bytes:
    """The file system's."""
    buffer = bytearray(1024)
    fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, buffer)
    return bytes(_FS_INFO.unpack_from(buffer)[2])


def is_btrfs(fd: int) -> bool:
    try:
        uuid(fd)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def is_root(fd: int) -> bool:
    """Whether a directory of a btrfs is the root of a subvolume."""
    return os.fstat(fd).st_ino == FIRST_FREE


def number(fd: int) -> int:
    """The subvolume that a directory lies in, or is the root of."""
    buffer = bytearray(_INO_LOOKUP.pack(0, FIRST_FREE, b""))
    fcntl.ioctl(fd, BTRFS_IOC_INO_LOOKUP, buffer)
    return int(_INO_LOOKUP.unpack_from(buffer)[0])


def create(directory_fd: int, name: str) -> None:
    """An empty subvolume, 0755 less the umask."""
    fcntl.ioctl(directory_fd, BTRFS_IOC_SUBVOL_CREATE, bytearray(_VOL_ARGS.pack(0, os.fsencode(name))))


def snapshot(source_fd: int, directory_fd: int, name: str) -> None:
    """A writable copy of the subvolume whose root `source_fd` is open on. It is on disk when this returns.

    Where a subvolume lies below it there is an empty directory in the copy.
    """
    arguments = _VOL_ARGS_V2.pack(source_fd, 0, 0, os.fsencode(name))
    fcntl.ioctl(directory_fd, BTRFS_IOC_SNAP_CREATE_V2, bytearray(arguments))


def set_read_only(fd: int, value: bool) -> None:
    """Make the subvolume whose root `fd` is open on read-only, or not. No mount of one that is can write to it."""
    flags = bytearray(8)
    fcntl.ioctl(fd, BTRFS_IOC_SUBVOL_GETFLAGS, flags)
    (was,) = struct.unpack("=Q", flags)
    wanted = was | BTRFS_SUBVOL_RDONLY if value else was & ~BTRFS_SUBVOL_RDONLY
    if wanted != was:
        fcntl.ioctl(fd, BTRFS_IOC_SUBVOL_SETFLAGS, struct.pack("=Q", wanted))


def last_change(fd: int) -> int:
    """The transaction in which something in the subvolume that `fd` lies in was last changed."""
    buffer = bytearray(504)
    fcntl.ioctl(fd, BTRFS_IOC_GET_SUBVOL_INFO, buffer)
    return int(_SUBVOL_INFO.unpack_from(buffer)[-1])


def children(fd: int, parent: int) -> list[Reference]:
    """The subvolumes that lie in the subvolume `parent` itself, and not deeper."""
    found = []
    for item in search(fd, ROOT_TREE, (parent, ROOT_REF_KEY, 0), (parent, ROOT_REF_KEY, _LAST)):
        directory, _, length = _ROOT_REF.unpack_from(item.data)
        found.append(Reference(item.offset, directory, bytes(item.data[_ROOT_REF.size :][:length])))
    return found


def exists(fd: int, subvolume: int) -> bool:
    """Whether there is such a subvolume, or one that was destroyed and whose blocks the kernel is still giving back."""
    return any(search(fd, ROOT_TREE, (subvolume, ROOT_ITEM_KEY, 0), (subvolume, ROOT_ITEM_KEY, _LAST)))


def open_directory(fd: int, subvolume: int, inode: int = FIRST_FREE) -> int:
    """A descriptor of a directory by its inode number, however deep it lies; of the subvolume's root without one.

    Needs CAP_DAC_READ_SEARCH (open_by_handle_at(2)). ESTALE if there is none.
    """
    fid = _FID.pack(inode, subvolume, 0)  # no generation: any
    handle = _FILE_HANDLE.pack(len(fid), _FILEID_BTRFS_WITHOUT_PARENT) + fid
    return _open_by_handle_at(fd, handle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def destroy(directory_fd: int, name: str) -> list[int]:
    """Destroy the subvolume `name` in this directory, and all below it, however nested; their numbers.

    Its blocks are given back by the kernel later. ENOENT if it is not there, EINVAL for a plain directory.
    """
    root_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        if not is_root(root_fd):
            raise OSError(errno.EINVAL, "not a subvolume", name)
        destroyed = _destroy_below(root_fd)
        top = number(root_fd)
    finally:
        os.close(root_fd)
    fcntl.ioctl(directory_fd, BTRFS_IOC_SNAP_DESTROY, bytearray(_VOL_ARGS.pack(0, os.fsencode(name))))
    return [*destroyed, top]


def _destroy_below(root_fd: int) -> list[int]:
    # A list and no recursion: a container can nest them deeper than our stack goes.
    found: list[tuple[int, Reference]] = []
    pending = [number(root_fd)]
    while pending:
        parent = pending.pop()
        below = children(root_fd, parent)
        if below:
            parent_fd = open_directory(root_fd, parent)
            try:
                set_read_only(parent_fd, False)  # else nothing in it can be destroyed: EROFS
            finally:
                os.close(parent_fd)
        found += [(parent, reference) for reference in below]
        pending += [reference.number for reference in below]
    for parent, reference in reversed(found):
        directory_fd = open_directory(root_fd, parent, reference.directory)
        try:
            fcntl.ioctl(directory_fd, BTRFS_IOC_SNAP_DESTROY, bytearray(_VOL_ARGS.pack(0, reference.name)))
        finally:
            os.close(directory_fd)
    return [reference.number for _, reference in reversed(found)]


def measure(fd: int, since: int) -> Usage:
    """What was changed in the subvolume that `fd` lies in after the transaction `since`: inodes made or changed (its
    root always among them), and bytes that the extents written take on disk; with all subvolumes below it.

    Only the leaves of the tree that were changed are read, so a few changes in a large snapshot are found at once. What
    is not yet written back is not seen: sync before.
    """
    inodes = size = 0
    pending = [(number(fd), since)]
    while pending:
        subvolume, since = pending.pop()
        extents: set[int] = set()
        inodes += 1
        for item in search(fd, subvolume, (0, 0, 0), (_LAST, 255, _LAST), since=since):
            if item.type == INODE_ITEM_KEY:
                inodes += item.objectid > FIRST_FREE and _INODE.unpack_from(item.data)[1] > since
            elif item.type == EXTENT_DATA_KEY:
                generation, *_, kind = _EXTENT.unpack_from(item.data)
                if generation <= since:
                    continue
                if kind == _FILE_EXTENT_INLINE:
                    size += len(item.data) - _EXTENT.size
                    continue
                address, length = _EXTENT_ON_DISK.unpack_from(item.data, _EXTENT.size)
                if address and address not in extents:  # 0 is a hole; and one extent may be in several places
                    extents.add(address)
                    size += length
        pending += [(reference.number, 0) for reference in children(fd, subvolume)]
    return Usage(inodes, size)


def search(
    fd: int, tree: int, first: tuple[int, int, int], last: tuple[int, int, int], *, since: int = 0
) -> Iterator[Item]:
    """The items of a tree with keys (objectid, type, offset) from `first` to `last`, in leaves that were changed after
    the transaction `since`. An item's data is valid until the next item. ENOENT if there is no such tree."""
    least_transid = since + 1 if since else 0
    while True:
        key = _SEARCH.pack(
            tree, first[0], last[0], first[2], last[2], least_transid, _LAST, first[1], last[1], 1 << 31, _SEARCH_BUFFER
        )
        buffer = bytearray(_SEARCH.size + _SEARCH_BUFFER)
        buffer[: len(key)] = key
        fcntl.ioctl(fd, BTRFS_IOC_TREE_SEARCH_V2, buffer)
        count = _SEARCH.unpack_from(buffer)[9]
        if not count:
            return
        view, position = memoryview(buffer), _SEARCH.size
        for _ in range(count):
            _, objectid, offset, kind, length = _SEARCH_HEADER.unpack_from(view, position)
            position += _SEARCH_HEADER.size
            # The range is of whole keys: between its ends there are items of all types.
            yield Item(objectid, kind, offset, view[position : position + length])
            position += length
        if (objectid, kind, offset) >= last:
            return
        if offset < _LAST:
            first = (objectid, kind, offset + 1)
        elif kind < 255:
            first = (objectid, kind + 1, 0)
        else:
            first = (objectid + 1, 0, 0)


def device_size(fd: int) -> int:
    """The bytes of its first device that a btrfs of one device uses."""
    buffer = bytearray(4096)
    struct.pack_into("=Q", buffer, 0, 1)
    fcntl.ioctl(fd, BTRFS_IOC_DEV_INFO, buffer)
    return int(_DEV_INFO.unpack_from(buffer)[3])


def grow(fd: int) -> None:
    """Use the whole device, which has become larger."""
    fcntl.ioctl(fd, BTRFS_IOC_RESIZE, bytearray(_VOL_ARGS.pack(0, b"max")))


def sync(fd: int) -> None:
    """Write everything of the file system to the disk; and begin to give back the blocks of what was destroyed."""
    fcntl.ioctl(fd, BTRFS_IOC_SYNC)


def used(fd: int) -> int:
    """The bytes of its device that are in use."""
    status = os.fstatvfs(fd)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def trim(fd: int, least: int) -> None:
    """Discard what is free in pieces of `least` bytes and more (fstrim(8)). EOPNOTSUPP where its device cannot."""
    fcntl.ioctl(fd, FITRIM, bytearray(_TRIM_RANGE.pack(0, _LAST, least)))
