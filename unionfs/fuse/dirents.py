"""The answer to READDIR and READDIRPLUS, filled entry by entry until the kernel's buffer is full."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from unionfs.fuse import abi
from unionfs.fuse.reply import Status

_NS = 1_000_000_000


class _Packers(dict[int, Callable[..., bytes]]):
    """Words of 8 bytes that a name takes -> pack of the structure followed by such a name, NULs up to the boundary."""

    def __init__(self, layout: Struct) -> None:
        super().__init__()
        self._format = layout.format

    def __missing__(self, words: int) -> Callable[..., bytes]:
        pack = self[words] = Struct(f"{self._format}{8 * words}s").pack
        return pack


_DIRENT_SIZE = abi.DIRENT.size
_DIRENTPLUS_SIZE = abi.DIRENTPLUS.size
_DIRENT = _Packers(abi.DIRENT)
_DIRENTPLUS = _Packers(abi.DIRENTPLUS)
_pack_header = abi.OUT_HEADER.pack


class DirectoryReply:
    """One answer. `size` is fuse_read_in.size: the bytes of entries that fit. Belongs to one request, so to one thread.

    `next_offset` is what the kernel sends as fuse_read_in.offset to get the entries after this one.
    An answer without entries is the end of the directory.
    """

    __slots__ = ("_left", "_parts", "_size", "_unique")

    def __init__(self, unique: int, size: int) -> None:
        self._unique = unique
        self._size = size
        self._left = size
        self._parts: list[bytes] = []

    def add(self, name: bytes, ino: int, mode: int, next_offset: int) -> bool:
        """An entry of READDIR; False: it does not fit. Of `mode` only the file type bits (S_IFMT) are used."""
        length = len(name)
        words = (length + 7) >> 3
        left = self._left - _DIRENT_SIZE - (words << 3)
        if left < 0:
            return False
        self._left = left
        self._parts.append(_DIRENT[words](ino, next_offset, length, mode >> 12 & 15, name))
        return True

    def add_plus(
        self, name: bytes, nodeid: int, ino: int, nlink: int, st: Status, next_offset: int,
        entry_valid: int, attr_valid: int,
    ) -> bool:
        """An entry of READDIRPLUS, which counts as a lookup of `nodeid`; False: it does not fit, and does not count.

        With nodeid 0, as for `.` and `..`, the kernel takes the name and nothing else (fuse_direntplus_link).
        """
        length = len(name)
        words = (length + 7) >> 3
        left = self._left - _DIRENTPLUS_SIZE - (words << 3)
        if left < 0:
            return False
        self._left = left
        atime, atimensec = divmod(st.st_atime_ns, _NS)
        mtime, mtimensec = divmod(st.st_mtime_ns, _NS)
        ctime, ctimensec = divmod(st.st_ctime_ns, _NS)
        mode = st.st_mode
        self._parts.append(_DIRENTPLUS[words](
            nodeid, 0, entry_valid, attr_valid, 0, 0,
            ino, st.st_size, st.st_blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
            mode, nlink, st.st_uid, st.st_gid, st.st_rdev, st.st_blksize, 0,
            ino, next_offset, length, mode >> 12 & 15, name,
        ))
        return True

    def message(self) -> bytes:
        """The whole answer."""
        return _pack_header(16 + self._size - self._left, 0, self._unique) + b"".join(self._parts)
