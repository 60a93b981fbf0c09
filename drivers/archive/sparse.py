"""Where the data of a sparse member lies in its file, in GNU tar's forms.

    old GNU    type "S": four pieces in the header, and 21 in each block after it, until one says that no more follow
    pax 0.0    GNU.sparse.offset=OFFSET  GNU.sparse.numbytes=LENGTH, a pair each, read as 0.1  GNU.sparse.size
    pax 0.1    GNU.sparse.map=OFFSET,LENGTH,OFFSET,LENGTH…  GNU.sparse.size
    pax 1.0    GNU.sparse.major=1, GNU.sparse.realsize; the map is text at the beginning of the content

See the GNU tar manual, "Storing Sparse Files".
A map that is wrong raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from drivers.archive import headers
from drivers.archive.headers import BLOCK

_PIECES = 1 << 16
_PIECE = 24  # bytes of one in a header: offset and length, 12 each


class Map(NamedTuple):
    """`pieces` are (offset, length) in order, without overlap, all within `size`, the bytes of the file."""

    size: int
    pieces: tuple[tuple[int, int], ...]

    @property
    def stored(self) -> int:
        """The bytes of it that the archive has."""
        return sum(length for _, length in self.pieces)


def from_header(block: bytes, more: Callable[[], bytes]) -> Map:
    """The map of an old GNU header; `more` gives the next block."""
    pieces = _pieces(block[386:482])
    goes_on = block[482] != 0
    while goes_on:
        extension = more()
        pieces += _pieces(extension[:504])
        goes_on = extension[504] != 0
        if len(pieces) > _PIECES:
            break  # refused below
    return _checked(headers.number(block[483:495], "size"), pieces)


def _pieces(fields: bytes) -> list[tuple[int, int]]:
    found = []
    for start in range(0, len(fields), _PIECE):
        offset, length = fields[start : start + 12], fields[start + 12 : start + _PIECE]
        if offset[:1] in (b"\0", b" ") and not length.strip(b" \0"):
            break  # an unused one
        found.append((headers.number(offset, "sparse map"), headers.number(length, "sparse map")))
    return found


def from_pax(records: dict[bytes, bytes], more: Callable[[], bytes]) -> Map | None:
    """The map of a pax header, None if it says nothing of the kind; `more` gives the next block of the content."""
    if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor", b"0") == b"0":
        return _checked(headers.pax_number(records.get(b"GNU.sparse.realsize", b""), "size"), _read(more))
    if b"GNU.sparse.map" in records:
        numbers = [headers.pax_number(text, "sparse map") for text in records[b"GNU.sparse.map"].split(b",") if text]
        return _checked(headers.pax_number(records.get(b"GNU.sparse.size", b""), "size"), _paired(numbers))
    if any(keyword.startswith(b"GNU.sparse.") for keyword in records):
        raise ValueError("it is stored as a sparse file in a form that is not read; make the archive without --sparse")
    return None


def _read(more: Callable[[], bytes]) -> list[tuple[int, int]]:
    """The map of version 1.0: lines with how many pieces there are and their numbers, filled up to a block."""
    blocks = [more()]
    first, newline, _ = blocks[0].partition(b"\n")
    count = headers.pax_number(first, "sparse map") if newline else _PIECES + 1
    if count > _PIECES:
        raise ValueError(f"its sparse map has more than {_PIECES} pieces")
    lines = blocks[0].count(b"\n")
    while lines < 1 + 2 * count:
        blocks.append(more())
        lines += blocks[-1].count(b"\n")
        if len(blocks) * BLOCK > (1 + 2 * count) * 24 + BLOCK:  # a number has 20 digits at most
            raise ValueError("its sparse map is damaged")
    texts = b"".join(blocks).split(b"\n")[1 : 1 + 2 * count]
    return _paired([headers.pax_number(text, "sparse map") for text in texts])


def _paired(numbers: Sequence[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise ValueError("its sparse map is damaged")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _checked(size: int, pieces: Sequence[tuple[int, int]]) -> Map:
    if len(pieces) > _PIECES:
        raise ValueError(f"its sparse map has more than {_PIECES} pieces")
    position = 0
    for offset, length in pieces:
        if offset < position or length < 0 or offset + length > size:
            raise ValueError("its sparse map has pieces that overlap, or lie beyond its end")
        position = offset + length
    return Map(size, tuple(pieces))
