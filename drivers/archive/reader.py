"""An uncompressed tar stream as a sequence of entries: ustar, pax, GNU long names and sparse files, v7, star.

One pass, no seeking. Sizes and counts are held to `Limits` before anything is allocated for them.
"""

from __future__ import annotations

import base64
import binascii
import enum
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from drivers.archive import acl, headers, sparse
from drivers.archive.errors import ArchiveError, shown
from drivers.archive.headers import BLOCK, Header
from drivers.archive.limits import DEFAULT, Limits

CHUNK = 256 << 10
_ZEROS = bytes(CHUNK)
_GLOBALS = 64
_ACLS = {
    b"SCHILY.acl.access": b"system.posix_acl_access",
    b"SCHILY.acl.default": b"system.posix_acl_default",
}
# Those of Linux (xattr(7)). No file here can have an attribute outside of them, such as com.apple.ResourceFork.
_NAMESPACES = (b"user.", b"security.", b"system.", b"trusted.")
_NOBODY = 0xFFFFFFFF  # (uid_t) -1, which chown(2) takes as "leave it"


class Source(Protocol):
    """The one thing that a stream has to do: give at most `size` bytes, none at its end."""

    def read(self, size: int, /) -> bytes: ...


class Kind(enum.Enum):
    """What an entry makes. The values are POSIX's type flags."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


@dataclass(slots=True)
class Entry:
    """One member, extensions applied, its fields within what the kernel takes; names are as written, unchecked."""

    name: bytes
    kind: Kind
    mode: int  # the twelve permission bits
    uid: int
    gid: int
    size: int  # bytes of content; 0 but for FILE
    mtime_ns: int
    linkname: bytes  # where a link leads; b"" but for HARDLINK and SYMLINK
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    offset: int  # of its header in the stream

    def refuse(self, why: str) -> ArchiveError:
        return ArchiveError(why, entry=self.name, offset=self.offset)


class Reader:
    """Iterate for the entries; `data()` gives the content of the entry that came last. ArchiveError for anything else.

    Content that is not read is skipped. After the last entry `position` is just past the end-of-archive mark.
    """

    def __init__(self, stream: Source, limits: Limits = DEFAULT) -> None:
        self._stream = stream
        self._limits = limits
        self._globals: dict[bytes, bytes] = {}
        self._last: bytes | None = None
        self._block = b""  # the last header
        self._unread = 0  # bytes of the current entry's content, as they are stored
        self._map: sparse.Map | None = None  # where they belong, if it is sparse
        self._holes = 0  # bytes that entries have beyond what the archive has of them
        self._padding = 0
        self.position = 0

    def __iter__(self) -> Iterator[Entry]:
        count = 0
        records: dict[bytes, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        while True:
            offset = self.position
            header = self._header()
            if header is None:
                break
            if header.type == b"x":
                records = self._records(header, offset)
            elif header.type == b"g":
                self._globals |= self._records(header, offset)
                if len(self._globals) > _GLOBALS:  # they are kept, and merged into each entry that follows
                    raise ArchiveError(f"the archive has more than {_GLOBALS} global records", offset=offset)
                if sum(map(len, self._globals.values())) > self._limits.metadata:
                    raise ArchiveError(
                        f"its global records are over the {self._limits.metadata} bytes that are allowed", offset=offset
                    )
            elif header.type == b"L":
                long_name = self._body(header, offset, "long name").partition(b"\0")[0]
            elif header.type == b"K":
                long_link = self._body(header, offset, "long link target").partition(b"\0")[0]
            else:
                count += 1
                if count > self._limits.entries:
                    raise ArchiveError(f"the archive has more than {self._limits.entries} entries")
                entry = self._entry(header, offset, self._globals | records, long_name, long_link)
                records, long_name, long_link = {}, None, None
                self._last = entry.name
                yield entry
                self._skip()
        if records or long_name is not None or long_link is not None:
            raise ArchiveError("the archive ends behind an extended header whose entry is missing")

    def data(self) -> Iterator[bytes]:
        """The current entry's content, in pieces of at most CHUNK bytes, once. Holes of a sparse one come as zeros."""
        if self._map is None:
            yield from self._stored(self._unread)
            return
        position = 0
        for offset, length in (*self._map.pieces, (self._map.size, 0)):
            while position < offset:
                yield _ZEROS[: offset - position]
                position += min(CHUNK, offset - position)
            yield from self._stored(length)
            position += length

    def _stored(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes that are stored for the current entry."""
        while count:
            piece = self._stream.read(min(count, CHUNK))
            if not piece:
                raise ArchiveError(
                    f"the archive is cut short, {self._unread} bytes of this entry are missing",
                    entry=self._last,
                    offset=self.position,
                )
            count -= len(piece)
            self._unread -= len(piece)
            self._advance(len(piece))
            yield piece

    def _skip(self) -> None:
        for _ in self._stored(self._unread):
            pass
        self._up_to(self._padding)  # umoci's insert leaves it out after the last entry
        self._padding = 0

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > self._limits.total:
            raise ArchiveError(f"the archive is larger than the {self._limits.total} bytes that are allowed")

    def _exactly(self, count: int) -> bytes:
        found = self._up_to(count)
        if len(found) < count:
            after = "" if self._last is None else f" behind {shown(self._last)}"
            raise ArchiveError(f"the archive is cut short{after}", offset=self.position)
        return found

    def _up_to(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end of the stream only."""
        pieces = []
        while count and (piece := self._stream.read(count)):
            pieces.append(piece)
            count -= len(piece)
            self._advance(len(piece))
        return b"".join(pieces)

    def _header(self) -> Header | None:
        """The next header, or None at the end of the archive: at a block of zeros, since libarchive takes one for the
        mark, and at the end of the stream, since some tools (umoci's insert) write no mark and GNU tar and Go need
        none.
        """
        offset = self.position
        try:
            self._block = self._up_to(BLOCK)
            if not self._block:
                return None
            if len(self._block) < BLOCK:
                self._exactly(BLOCK)
            return headers.parse(self._block)
        except ValueError as error:
            if offset == 0:
                raise ArchiveError(
                    "this is not a tar archive, plain or compressed with gzip, bzip2, xz or zstd"
                ) from None
            after = "the first header" if self._last is None else shown(self._last)
            raise ArchiveError(
                f"the header behind {after} is damaged: {error}; an entry may have lied about its size", offset=offset
            ) from None

    def _body(self, header: Header, offset: int, what: str) -> bytes:
        """The content of an extension header."""
        if not 0 <= header.size <= self._limits.metadata:
            why = f"its {what} of {header.size} bytes is over the {self._limits.metadata} that are allowed"
            raise ArchiveError(why, entry=header.name, offset=offset)
        body = self._exactly(header.size)
        self._exactly(-header.size % BLOCK)
        return body

    def _records(self, header: Header, offset: int) -> dict[bytes, bytes]:
        body = self._body(header, offset, "pax header")
        try:
            return headers.pax_records(body)
        except ValueError as error:
            raise ArchiveError(str(error), entry=header.name, offset=offset) from None

    def _entry(
        self, header: Header, offset: int, pax: dict[bytes, bytes], long_name: bytes | None, long_link: bytes | None
    ) -> Entry:
        """The entry that `header` and its extensions describe; a GNU long name wins over pax's, as Go has it."""
        name = long_name or pax.get(b"GNU.sparse.name") or pax.get(b"path") or header.name
        try:
            if header.type not in _KINDS:
                raise ValueError(f"its type {header.type!r} is none that a file system tree is made of")
            kind = _KINDS[header.type]
            size = headers.pax_number(pax[b"size"], "size") if pax.get(b"size") else header.size
            if kind is Kind.FILE:
                size = self._expect(header, pax, size)
            else:
                # No content follows these, whatever the field says: POSIX ustar, and all other readers.
                size = self._unread = self._padding = 0
                self._map = None
            return Entry(
                name=name,
                kind=Kind.DIRECTORY if kind is Kind.FILE and name.endswith(b"/") else kind,
                mode=header.mode,
                uid=_owner(pax.get(b"uid"), header.uid, "user id"),
                gid=_owner(pax.get(b"gid"), header.gid, "group id"),
                size=size,
                mtime_ns=_mtime(pax.get(b"mtime"), header.mtime),
                linkname=(long_link or pax.get(b"linkpath") or header.linkname) if kind in _LINKS else b"",
                major=header.major,
                minor=header.minor,
                xattrs=self._xattrs(pax),
                offset=offset,
            )
        except ValueError as error:
            raise ArchiveError(str(error), entry=name, offset=offset) from None

    def _expect(self, header: Header, pax: dict[bytes, bytes], stored: int) -> int:
        """Get ready for the content of an entry, of which `stored` bytes are in the archive. How many bytes it has."""
        if stored < 0 or stored > self._limits.total - self.position:
            raise ValueError(f"it says it is {stored} bytes long, the archive may have {self._limits.total} in all")
        start = self.position
        if header.type == b"S":
            self._map = sparse.from_header(self._block, lambda: self._exactly(BLOCK))
            start = self.position
        else:
            self._map = sparse.from_pax(pax, lambda: self._exactly(BLOCK))
        self._unread, self._padding = stored - (self.position - start), -stored % BLOCK
        if self._map is None:
            return stored
        if self._map.stored != self._unread:
            raise ValueError("its sparse map does not fit what is stored of it")
        self._holes += self._map.size - self._unread
        if self._holes > self._limits.total - self.position:
            raise ValueError(f"its holes make it larger than the {self._limits.total} bytes that are allowed in all")
        return self._map.size

    def _xattrs(self, pax: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Extended attributes by name. star and GNU tar write them raw (with `=` and `%` of the name escaped),
        libarchive percent-encoded and in base64; where both are there, the raw form wins. ACLs come raw or in words."""
        found: dict[bytes, bytes] = {}
        for keyword, value in pax.items():
            if keyword.startswith(b"LIBARCHIVE.xattr."):
                name = urllib.parse.unquote_to_bytes(keyword.removeprefix(b"LIBARCHIVE.xattr."))
                if not name.startswith(_NAMESPACES):
                    continue
                try:
                    found.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
                except binascii.Error:
                    raise ValueError(f"the value of its extended attribute {shown(name)} is not base64") from None
            elif keyword.startswith(b"SCHILY.xattr."):
                name = keyword.removeprefix(b"SCHILY.xattr.").replace(b"%3D", b"=").replace(b"%25", b"%")
                if name.startswith(_NAMESPACES):
                    found[name] = value
        for keyword, name in _ACLS.items():
            if keyword in pax and name not in found and (encoded := acl.from_words(pax[keyword])) is not None:
                found[name] = encoded
        if sum(len(name) + len(value) for name, value in found.items()) > self._limits.xattrs:
            raise ValueError(f"its extended attributes are over the {self._limits.xattrs} bytes that are allowed")
        return found


# "7" is a contiguous file, which POSIX has readers treat as a regular one; "S" GNU tar's old form of a sparse one.
_KINDS = {kind.value: kind for kind in Kind} | {b"7": Kind.FILE, b"S": Kind.FILE}
_LINKS = (Kind.HARDLINK, Kind.SYMLINK)


def _owner(record: bytes | None, field: int, what: str) -> int:
    """-2, which BSD uses for nobody, is the number that its 32 bits make."""
    value = headers.pax_number(record, what, signed=True) if record else field
    if -(1 << 31) <= value < -1:
        value += 1 << 32
    if not 0 <= value < _NOBODY:
        raise ValueError(f"its {what} {value} is none that Linux has")
    return value


def _mtime(record: bytes | None, field: int) -> int:
    nanoseconds = headers.pax_time(record) if record else field * 10**9
    if not -(1 << 63) <= nanoseconds // 10**9 < 1 << 63:
        raise ValueError("its modification time is out of all bounds")
    return nanoseconds
