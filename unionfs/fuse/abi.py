"""The constants and structures of include/uapi/linux/fuse.h, version 7.45 (Linux 6.18), under their kernel names.

A structure FUSE_FOO_IN is the struct.Struct FOO_IN here. It packs and unpacks the fields FIELDS names, in order;
padding and reserved words are written as zeros and not returned. Times are signed although the header says uint64_t:
the kernel casts them to time64_t. That every size is the C size is checked when this module is imported.
"""

from __future__ import annotations

from struct import Struct

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 45
FUSE_ROOT_ID = 1
FUSE_MIN_READ_BUFFER = 8192

# enum fuse_opcode
FUSE_LOOKUP = 1
FUSE_FORGET = 2
FUSE_GETATTR = 3
FUSE_SETATTR = 4
FUSE_READLINK = 5
FUSE_SYMLINK = 6
FUSE_MKNOD = 8
FUSE_MKDIR = 9
FUSE_UNLINK = 10
FUSE_RMDIR = 11
FUSE_RENAME = 12
FUSE_LINK = 13
FUSE_OPEN = 14
FUSE_READ = 15
FUSE_WRITE = 16
FUSE_STATFS = 17
FUSE_RELEASE = 18
FUSE_FSYNC = 20
FUSE_SETXATTR = 21
FUSE_GETXATTR = 22
FUSE_LISTXATTR = 23
FUSE_REMOVEXATTR = 24
FUSE_FLUSH = 25
FUSE_INIT = 26
FUSE_OPENDIR = 27
FUSE_READDIR = 28
FUSE_RELEASEDIR = 29
FUSE_FSYNCDIR = 30
FUSE_GETLK = 31
FUSE_SETLK = 32
FUSE_SETLKW = 33
FUSE_ACCESS = 34
FUSE_CREATE = 35
FUSE_INTERRUPT = 36
FUSE_BMAP = 37
FUSE_DESTROY = 38
FUSE_IOCTL = 39
FUSE_POLL = 40
FUSE_NOTIFY_REPLY = 41
FUSE_BATCH_FORGET = 42
FUSE_FALLOCATE = 43
FUSE_READDIRPLUS = 44
FUSE_RENAME2 = 45
FUSE_LSEEK = 46
FUSE_COPY_FILE_RANGE = 47
FUSE_SETUPMAPPING = 48
FUSE_REMOVEMAPPING = 49
FUSE_SYNCFS = 50
FUSE_TMPFILE = 51
FUSE_STATX = 52
FUSE_COPY_FILE_RANGE_64 = 53
CUSE_INIT = 4096

# enum fuse_notify_code
FUSE_NOTIFY_POLL = 1
FUSE_NOTIFY_INVAL_INODE = 2
FUSE_NOTIFY_INVAL_ENTRY = 3
FUSE_NOTIFY_STORE = 4
FUSE_NOTIFY_RETRIEVE = 5
FUSE_NOTIFY_DELETE = 6
FUSE_NOTIFY_RESEND = 7
FUSE_NOTIFY_INC_EPOCH = 8
FUSE_NOTIFY_PRUNE = 9

# INIT flags. Bits 32 and up travel in flags2, and count only with FUSE_INIT_EXT.
FUSE_ASYNC_READ = 1 << 0
FUSE_POSIX_LOCKS = 1 << 1
FUSE_FILE_OPS = 1 << 2
FUSE_ATOMIC_O_TRUNC = 1 << 3
FUSE_EXPORT_SUPPORT = 1 << 4
FUSE_BIG_WRITES = 1 << 5
FUSE_DONT_MASK = 1 << 6
FUSE_SPLICE_WRITE = 1 << 7
FUSE_SPLICE_MOVE = 1 << 8
FUSE_SPLICE_READ = 1 << 9
FUSE_FLOCK_LOCKS = 1 << 10
FUSE_HAS_IOCTL_DIR = 1 << 11
FUSE_AUTO_INVAL_DATA = 1 << 12
FUSE_DO_READDIRPLUS = 1 << 13
FUSE_READDIRPLUS_AUTO = 1 << 14
FUSE_ASYNC_DIO = 1 << 15
FUSE_WRITEBACK_CACHE = 1 << 16
FUSE_NO_OPEN_SUPPORT = 1 << 17
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_HANDLE_KILLPRIV = 1 << 19
FUSE_POSIX_ACL = 1 << 20
FUSE_ABORT_ERROR = 1 << 21
FUSE_MAX_PAGES = 1 << 22
FUSE_CACHE_SYMLINKS = 1 << 23
FUSE_NO_OPENDIR_SUPPORT = 1 << 24
FUSE_EXPLICIT_INVAL_DATA = 1 << 25
FUSE_MAP_ALIGNMENT = 1 << 26
FUSE_SUBMOUNTS = 1 << 27
FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
FUSE_SETXATTR_EXT = 1 << 29
FUSE_INIT_EXT = 1 << 30
FUSE_INIT_RESERVED = 1 << 31
FUSE_SECURITY_CTX = 1 << 32
FUSE_HAS_INODE_DAX = 1 << 33
FUSE_CREATE_SUPP_GROUP = 1 << 34
FUSE_HAS_EXPIRE_ONLY = 1 << 35
FUSE_DIRECT_IO_ALLOW_MMAP = 1 << 36
FUSE_PASSTHROUGH = 1 << 37
FUSE_NO_EXPORT_SUPPORT = 1 << 38
FUSE_HAS_RESEND = 1 << 39
FUSE_ALLOW_IDMAP = 1 << 40
FUSE_OVER_IO_URING = 1 << 41
FUSE_REQUEST_TIMEOUT = 1 << 42

# SETATTR: which fields of fuse_setattr_in count.
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

# What the answer to OPEN, OPENDIR and CREATE says of the open file.
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

# Flags inside other requests, replies and notifications.
FUSE_OPEN_KILL_SUIDGID = 1 << 0
FUSE_GETATTR_FH = 1 << 0
FUSE_RELEASE_FLUSH = 1 << 0
FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1
FUSE_LK_FLOCK = 1 << 0
FUSE_READ_LOCKOWNER = 1 << 1
FUSE_WRITE_CACHE = 1 << 0
FUSE_WRITE_LOCKOWNER = 1 << 1
FUSE_WRITE_KILL_SUIDGID = 1 << 2
FUSE_FSYNC_FDATASYNC = 1 << 0
FUSE_IOCTL_COMPAT = 1 << 0
FUSE_IOCTL_UNRESTRICTED = 1 << 1
FUSE_IOCTL_RETRY = 1 << 2
FUSE_IOCTL_32BIT = 1 << 3
FUSE_IOCTL_DIR = 1 << 4
FUSE_IOCTL_COMPAT_X32 = 1 << 5
FUSE_ATTR_SUBMOUNT = 1 << 0
FUSE_ATTR_DAX = 1 << 1
FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0
FUSE_EXPIRE_ONLY = 1 << 0

# fuse_in_header.unique: INTERRUPT's own (fs/fuse/fuse_dev_i.h), and a request sent again after FUSE_NOTIFY_RESEND.
FUSE_INT_REQ_BIT = 1 << 0
FUSE_UNIQUE_RESEND = 1 << 63
# fuse_in_header.uid and gid where FUSE_ALLOW_IDMAP leaves them out.
FUSE_INVALID_UIDGID = 0xFFFFFFFF

FIELDS: dict[Struct, tuple[str, ...]] = {}


def _struct(size: int, fields: str) -> Struct:
    """The structure of `size` bytes in C with these fields, each "name code" or a padding "4x"."""
    words = [field.split() for field in fields.split(", ")]
    layout = Struct("<" + "".join(word[-1] for word in words))
    if layout.size != size:
        raise AssertionError(f"{layout.size} bytes, {size} in C: {fields}")
    FIELDS[layout] = tuple(word[0] for word in words if len(word) == 2)
    return layout


_ATTR = (
    "ino Q, size Q, blocks Q, atime q, mtime q, ctime q, atimensec I, mtimensec I, ctimensec I, "
    "mode I, nlink I, uid I, gid I, rdev I, blksize I, flags I"
)
_ENTRY = f"nodeid Q, generation Q, entry_valid Q, attr_valid Q, entry_valid_nsec I, attr_valid_nsec I, {_ATTR}"
_OPEN = "fh Q, open_flags I, backing_id i"
_DIRENT = "ino Q, off Q, namelen I, type I"
_LOCK = "start Q, end Q, type I, pid I"
_STATX = (
    "mask I, blksize I, attributes Q, nlink I, uid I, gid I, mode H, 2x, ino Q, size Q, blocks Q, attributes_mask Q, "
    "atime q, atimensec I, 4x, btime q, btimensec I, 4x, ctime q, ctimensec I, 4x, mtime q, mtimensec I, 4x, "
    "rdev_major I, rdev_minor I, dev_major I, dev_minor I, 112x"
)
_COPY_FILE_RANGE = "fh_in Q, off_in Q, nodeid_out Q, fh_out Q, off_out Q, len Q, flags Q"

IN_HEADER = _struct(40, "len I, opcode I, unique Q, nodeid Q, uid I, gid I, pid I, total_extlen H, 2x")
OUT_HEADER = _struct(16, "len I, error i, unique Q")
ATTR = _struct(88, _ATTR)

INIT_IN = _struct(64, "major I, minor I, max_readahead I, flags I, flags2 I, 44x")
INIT_OUT = _struct(
    64,
    "major I, minor I, max_readahead I, flags I, max_background H, congestion_threshold H, max_write I, time_gran I, "
    "max_pages H, map_alignment H, flags2 I, max_stack_depth I, request_timeout H, 22x",
)
CUSE_INIT_IN = _struct(16, "major I, minor I, 4x, flags I")
CUSE_INIT_OUT = _struct(
    72, "major I, minor I, 4x, flags I, max_read I, max_write I, dev_major I, dev_minor I, 40x"
)

ENTRY_OUT = _struct(128, _ENTRY)
ATTR_OUT = _struct(104, f"attr_valid Q, attr_valid_nsec I, 4x, {_ATTR}")
OPEN_OUT = _struct(16, _OPEN)
# CREATE and TMPFILE are answered with a fuse_entry_out and a fuse_open_out.
CREATE_OUT = _struct(144, f"{_ENTRY}, {_OPEN}")
FORGET_IN = _struct(8, "nlookup Q")
BATCH_FORGET_IN = _struct(8, "count I, 4x")
FORGET_ONE = _struct(16, "nodeid Q, nlookup Q")

GETATTR_IN = _struct(16, "getattr_flags I, 4x, fh Q")
SETATTR_IN = _struct(
    88,
    "valid I, 4x, fh Q, size Q, lock_owner Q, atime q, mtime q, ctime q, atimensec I, mtimensec I, ctimensec I, "
    "mode I, 4x, uid I, gid I, 4x",
)
STATX_IN = _struct(24, "getattr_flags I, 4x, fh Q, sx_flags I, sx_mask I")
STATX_OUT = _struct(288, f"attr_valid Q, attr_valid_nsec I, flags I, 16x, {_STATX}")
STATFS_OUT = _struct(80, "blocks Q, bfree Q, bavail Q, files Q, ffree Q, bsize I, namelen I, frsize I, 28x")
ACCESS_IN = _struct(8, "mask I, 4x")

MKNOD_IN = _struct(16, "mode I, rdev I, umask I, 4x")
MKDIR_IN = _struct(8, "mode I, umask I")
RENAME_IN = _struct(8, "newdir Q")
RENAME2_IN = _struct(16, "newdir Q, flags I, 4x")
LINK_IN = _struct(8, "oldnodeid Q")

OPEN_IN = _struct(8, "flags I, open_flags I")
CREATE_IN = _struct(16, "flags I, mode I, umask I, open_flags I")
RELEASE_IN = _struct(24, "fh Q, flags I, release_flags I, lock_owner Q")
FLUSH_IN = _struct(24, "fh Q, 8x, lock_owner Q")
FSYNC_IN = _struct(16, "fh Q, fsync_flags I, 4x")
SYNCFS_IN = _struct(8, "8x")
READ_IN = _struct(40, "fh Q, offset Q, size I, read_flags I, lock_owner Q, flags I, 4x")
WRITE_IN = _struct(40, "fh Q, offset Q, size I, write_flags I, lock_owner Q, flags I, 4x")
WRITE_OUT = _struct(8, "size I, 4x")
FALLOCATE_IN = _struct(32, "fh Q, offset Q, length Q, mode I, 4x")
LSEEK_IN = _struct(24, "fh Q, offset q, whence I, 4x")
LSEEK_OUT = _struct(8, "offset Q")
COPY_FILE_RANGE_IN = _struct(56, _COPY_FILE_RANGE)
COPY_FILE_RANGE_OUT = _struct(8, "bytes_copied Q")
DIRENT = _struct(24, _DIRENT)
DIRENTPLUS = _struct(152, f"{_ENTRY}, {_DIRENT}")

# The first 8 bytes of fuse_setxattr_in, all that is sent without FUSE_SETXATTR_EXT (FUSE_COMPAT_SETXATTR_IN_SIZE).
SETXATTR_IN = _struct(8, "size I, flags I")
GETXATTR_IN = _struct(8, "size I, 4x")
GETXATTR_OUT = _struct(8, "size I, 4x")

LK_IN = _struct(48, f"fh Q, owner Q, {_LOCK}, lk_flags I, 4x")
LK_OUT = _struct(24, _LOCK)
INTERRUPT_IN = _struct(8, "unique Q")
BMAP_IN = _struct(16, "block Q, blocksize I, 4x")
BMAP_OUT = _struct(8, "block Q")
IOCTL_IN = _struct(32, "fh Q, flags I, cmd I, arg Q, in_size I, out_size I")
IOCTL_OUT = _struct(16, "result i, flags I, in_iovs I, out_iovs I")
POLL_IN = _struct(24, "fh Q, kh Q, flags I, events I")
POLL_OUT = _struct(8, "revents I, 4x")
SETUPMAPPING_IN = _struct(40, "fh Q, foffset Q, len Q, flags Q, moffset Q")
REMOVEMAPPING_IN = _struct(4, "count I")
REMOVEMAPPING_ONE = _struct(16, "moffset Q, len Q")

NOTIFY_POLL_WAKEUP_OUT = _struct(8, "kh Q")
NOTIFY_INVAL_INODE_OUT = _struct(24, "ino Q, off q, len q")
NOTIFY_INVAL_ENTRY_OUT = _struct(16, "parent Q, namelen I, flags I")
NOTIFY_DELETE_OUT = _struct(24, "parent Q, child Q, namelen I, 4x")
NOTIFY_STORE_OUT = _struct(24, "nodeid Q, offset Q, size I, 4x")
NOTIFY_RETRIEVE_OUT = _struct(32, "notify_unique Q, nodeid Q, offset Q, size I, 4x")
NOTIFY_RETRIEVE_IN = _struct(40, "8x, offset Q, size I, 20x")
NOTIFY_PRUNE_OUT = _struct(16, "count I, 12x")
