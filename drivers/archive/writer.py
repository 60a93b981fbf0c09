"""A tar archive, entry by entry: the same bytes for the same entries, on any machine and at any time.

The format is POSIX ustar (POSIX.1-2017 pax, "ustar Interchange Format"), with a pax header before an entry that ustar
cannot express: a name beyond 100 bytes that does not split, a target beyond 100 bytes, numbers beyond their octal
digits, a time with a fraction or before 1970, extended attributes. Nothing else is written: no access or change time,
no names of users. So most entries are one block, and what is read back is what was given (drivers.archive.reader).

A name in a pax header is UTF-8 by that standard. One that is not is announced by `hdrcharset=BINARY`, which libarchive
and Python's tarfile obey; GNU tar and Go (archive/tar, hence docker) take the bytes as they are anyway. Extended
attributes are SCHILY.xattr.NAME with the value as it is, NULs and all: a record says its own length.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable

from drivers.archive.errors import ArchiveError
from drivers.archive.headers import BLOCK
from drivers.archive.limits import DEFAULT
from drivers.archive.reader import CHUNK, Entry, Kind

_ZEROS = bytes(CHUNK)
_END = 2 * BLOCK


class Writer:
    """Gives the archive to `write`, in pieces of at most CHUNK bytes; `size` is how many bytes there were so far."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.size = 0

    def add(self, entry: Entry, content: Iterable[bytes] = ()) -> None:
        """One member. `content` is cut to `entry.size`, or filled up with zeros, as GNU tar does it: a file may change
        while it is read, but what follows it in the archive must be found.

        ArchiveError for a name or target that is longer than any reader accepts.
        """
        for name in (entry.name, entry.linkname):
            if len(name) > DEFAULT.path:
                raise ArchiveError(f"a name of {len(name)} bytes, {DEFAULT.path} are possible in a layer", entry=name)
        self._put(_header(entry))
        left = entry.size
        for piece in content:
            taken = piece[:left]
            self._put(taken)
            left -= len(taken)
            if not left:
                break
        self._zeros(left + -entry.size % BLOCK)

    def finish(self) -> None:
        """The end-of-archive mark."""
        self._zeros(_END)

    def _zeros(self, count: int) -> None:
        while count:
            piece = _ZEROS if count >= CHUNK else _ZEROS[:count]
            self._put(piece)
            count -= len(piece)

    def _put(self, piece: bytes) -> None:
        self._write(piece)
        self.size += len(piece)


def _header(entry: Entry) -> bytes:
    """The blocks before the content."""
    records: dict[bytes, bytes] = {}
    prefix, name = _split(entry.name)
    if not name:
        name, records[b"path"] = entry.name[:100], entry.name
    if len(entry.linkname) > 100:
        records[b"linkpath"] = entry.linkname
    seconds, fraction = divmod(entry.mtime_ns, 10**9)
    if fraction or not 0 <= seconds < 8**11:
        records[b"mtime"] = _time(entry.mtime_ns)
    for keyword, value, width in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", entry.size, 11)):
        if value >= 8**width:
            records[keyword] = b"%d" % value
    for attribute, data in entry.xattrs.items():
        # As in GNU tar and star: a keyword ends at its first "=".
        records[b"SCHILY.xattr." + attribute.replace(b"%", b"%25").replace(b"=", b"%3D")] = data
    block = _block(entry, name, prefix, seconds)
    return _extended(records) + block if records else block


def _split(name: bytes) -> tuple[bytes, bytes]:
    """`name` in ustar's prefix and name fields, b"" and b"" when it does not fit: 155 bytes, a slash, 100 bytes."""
    if len(name) <= 100:
        return b"", name
    cut = name.rfind(b"/", 0, 156)
    rest = name[cut + 1 :]
    return (name[:cut], rest) if cut > 0 and 0 < len(rest) <= 100 else (b"", b"")


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


def _extended(records: dict[bytes, bytes]) -> bytes:
    """A pax header and its body, the keywords in the order given: that of the attributes' names."""
    body = b"".join(_record(keyword, records[keyword]) for keyword in sorted(records))
    try:
        for keyword in (b"path", b"linkpath"):
            records.get(keyword, b"").decode()
    except UnicodeDecodeError:
        body = _record(b"hdrcharset", b"BINARY") + body  # it holds for the records after it
    header = Entry(b"././@PaxHeader", Kind.FILE, 0o644, 0, 0, len(body), 0, b"", 0, 0, {}, 0)
    return _block(header, header.name, b"", 0, type_=b"x") + body + bytes(-len(body) % BLOCK)


def _record(keyword: bytes, value: bytes) -> bytes:
    """`LENGTH KEYWORD=VALUE\\n`, where LENGTH counts its own digits too."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def _block(entry: Entry, name: bytes, prefix: bytes, seconds: int, *, type_: bytes = b"") -> bytes:
    def octal(value: int, digits: int) -> bytes:
        return b"%0*o\0" % (digits, value if 0 <= value < 8**digits else 0)  # else a record has it

    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = octal(stat.S_IMODE(entry.mode), 7)
    block[108:116] = octal(entry.uid, 7)
    block[116:124] = octal(entry.gid, 7)
    block[124:136] = octal(entry.size, 11)
    block[136:148] = octal(seconds, 11)
    block[148:156] = b" " * 8
    block[156:157] = type_ or entry.kind.value
    link = entry.linkname[:100]
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[329:337] = octal(entry.major, 7)
    block[337:345] = octal(entry.minor, 7)
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
