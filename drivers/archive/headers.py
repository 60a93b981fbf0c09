"""One 512-byte tar header, and the records of a pax header: bytes in, values out, no file is touched.

Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; tar(5) of libarchive; the GNU tar
manual, "Basic Tar Format". A damaged field raises ValueError with the reason; the reader adds where it stands.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_SPARSE_PIECE = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_BLANK = b" " * 8  # what the checksum field counts as while it is computed


class Header(NamedTuple):
    """The fields of one header as they are on tape: numbers unchecked but for their form, names without padding."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    type: bytes  # one byte, b"0" to b"7" or an extension's letter; the old b"\0" is given as b"0" or b"5"
    linkname: bytes
    major: int
    minor: int


def parse(block: bytes) -> Header | None:
    """The header in `block` (512 bytes), or None for a block of zeros, which ends the archive.

    ValueError: a wrong checksum, or something that should be a number and is not.
    """
    if block == _ZEROS:
        return None
    _verify_checksum(block)
    name, prefix = _string(block[0:100]), b""
    if block[257:263] == b"ustar\0":
        # star(1) has its access and change time at the end of the prefix field, and says so in the last four bytes.
        prefix = _string(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
    elif block[257:265] == b"ustar  \0" and not (_is_time(block[345:357]) and _is_time(block[357:369])):
        # Go before 1.8, which docker of 2016 was built by, wrote a prefix where GNU tar has two times (golang.org/
        # issue/12594); its own reader still looks for one there.
        prefix = text if (text := _string(block[345:500])).isascii() else b""
    name = prefix + b"/" + name if prefix else name
    kind = block[156:157]
    if kind == b"\0":
        kind = b"5" if name.endswith(b"/") else b"0"
    device = kind in (b"3", b"4")  # v7 archives have whatever was in the buffer in these two fields
    return Header(
        name=name,
        mode=number(block[100:108], "mode") & 0o7777,
        uid=number(block[108:116], "user id"),
        gid=number(block[116:124], "group id"),
        size=number(block[124:136], "size"),
        mtime=number(block[136:148], "modification time"),
        type=kind,
        linkname=_string(block[157:257]),
        major=number(block[329:337], "device number") if device else 0,
        minor=number(block[337:345], "device number") if device else 0,
    )


def _verify_checksum(block: bytes) -> None:
    stored = number(block[148:156], "checksum")
    summed = block[:148] + _BLANK + block[156:]
    unsigned = sum(summed)
    # SunOS and old AIX summed signed characters; every reader takes both.
    if stored != unsigned and stored != unsigned - 256 * sum(byte >> 7 for byte in summed):
        raise ValueError("its checksum is wrong")


def _string(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _is_time(field: bytes) -> bool:
    try:
        number(field, "time")
    except ValueError:
        return False
    return True


def number(field: bytes, what: str) -> int:
    """A numeric field: octal digits between blanks, or base 256 when the first byte's high bit is set (GNU, star)."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else value - (1 << 8 * (len(field) - 1))
    digits = _string(field.strip(b" \0"))
    if not digits:
        return 0
    if len(digits.strip(b"01234567")):
        raise ValueError(f"its {what} is not a number")
    return int(digits, 8)


def pax_records(body: bytes) -> dict[bytes, bytes]:
    """The records `LENGTH KEYWORD=VALUE\\n` of a pax header's body, the last of a keyword winning.

    An empty value takes back what a global header said. GNU tar's oldest sparse files give each piece as a pair of
    records, the one case where all records of a keyword count: they come as the next version's GNU.sparse.map.
    ValueError: a length that does not fit, or no `=`.
    """
    records = {}
    pieces: list[bytes] = []
    position = 0
    while position < len(body):
        digits, blank, _ = body[position : position + 12].partition(b" ")
        if not blank or not digits.isdigit():
            raise ValueError("a record of its pax header has no length")
        end = position + int(digits)
        start = position + len(digits) + 1
        if end > len(body) or end <= start or body[end - 1 : end] != b"\n":
            raise ValueError("a record of its pax header has a wrong length")
        keyword, equals, value = body[start : end - 1].partition(b"=")
        if not equals or not keyword:
            raise ValueError("a record of its pax header has no keyword")
        if keyword in _SPARSE_PIECE:
            if keyword != _SPARSE_PIECE[len(pieces) % 2]:
                raise ValueError("its sparse map is damaged")
            pieces.append(value)
        else:
            records[keyword] = value
        position = end
    if pieces:
        records[b"GNU.sparse.map"] = b",".join(pieces)
    return records


def pax_number(value: bytes, what: str, *, signed: bool = False) -> int:
    """A decimal integer of a pax record. ValueError otherwise."""
    if not value.removeprefix(b"-" if signed else b"").isdigit() or len(value) > 20:
        raise ValueError(f"its {what} is not a number")
    return int(value)


def pax_time(value: bytes) -> int:
    """A pax time, decimal seconds with an optional sign and fraction, in nanoseconds; further digits are cut off."""
    sign = -1 if value[:1] == b"-" else 1
    seconds, _, fraction = value[sign < 0 :].partition(b".")
    if not seconds.isdigit() or len(seconds) > 19 or (fraction and not fraction.isdigit()):
        raise ValueError("its modification time is not a number")
    return sign * (int(seconds) * 10**9 + int(fraction[:9].ljust(9, b"0")))
