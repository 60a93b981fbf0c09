from __future__ import annotations

import pytest

from drivers.archive import headers
from tests.drivers.archive import tape


def test_a_posix_header() -> None:
    block = tape.header(b"bin/true", size=26, mode=0o4755, uid=1000, gid=100, mtime=1234567890, prefix=b"usr")
    assert headers.parse(block) == headers.Header(
        b"usr/bin/true", 0o4755, 1000, 100, 26, 1234567890, b"0", b"", 0, 0
    )


def test_zeros_end_the_archive() -> None:
    assert headers.parse(bytes(512)) is None


def test_gnu_headers_have_no_prefix() -> None:
    """GNU's old format keeps times where POSIX has the prefix."""
    parsed = headers.parse(tape.header(b"a", magic=tape.GNU, prefix=b"14000000000"))
    assert parsed is not None and parsed.name == b"a"


def test_but_go_wrote_one_there() -> None:
    """Before version 1.8, when a number was too large for ustar (golang.org/issue/12594)."""
    for prefix, name in ((b"usr/share/doc", b"usr/share/doc/a"), (b"caf\xc3\xa9/doc", b"a"), (b"", b"a")):
        parsed = headers.parse(tape.header(b"a", magic=tape.GNU, uid=tape.base256(1 << 31, 8), prefix=prefix))
        assert parsed is not None and (parsed.name, parsed.uid) == (name, 1 << 31)


def test_star_headers_have_a_short_prefix() -> None:
    block = bytearray(tape.header(b"a", prefix=b"dir"))
    block[476:512] = (b"00000000000\0" * 2).ljust(32, b"\0") + b"tar\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    parsed = headers.parse(bytes(block))
    assert parsed is not None and parsed.name == b"dir/a"


def test_v7_directories_end_with_a_slash() -> None:
    for name, kind in ((b"d/", b"5"), (b"f", b"0")):
        parsed = headers.parse(tape.header(name, b"\0", magic=tape.V7))
        assert parsed is not None and parsed.type == kind


def test_a_name_may_fill_its_field() -> None:
    parsed = headers.parse(tape.header(b"n" * 100, link=b"l" * 100))
    assert parsed is not None and (parsed.name, parsed.linkname) == (b"n" * 100, b"l" * 100)


def test_a_checksum_of_signed_characters_counts() -> None:
    assert headers.parse(tape.header(b"caf\xc3\xa9", signed=True)) is not None


@pytest.mark.parametrize("position", [0, 99, 100, 124, 148, 156, 257, 345, 511])
def test_one_changed_byte_is_seen(position: int) -> None:
    block = bytearray(tape.header(b"file", size=5))
    block[position] ^= 0x41
    with pytest.raises(ValueError, match="checksum"):
        headers.parse(bytes(block))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644), (b"   644 \0", 0o644), (b"644     ", 0o644), (b"\0" * 8, 0), (b"        ", 0),
        (b"12\0garb\0", 0o12), (tape.base256(1 << 40, 8), 1 << 40), (tape.base256(-1, 8), -1),
        (tape.base256(1 << 62, 12), 1 << 62), (tape.base256(-(1 << 62), 12), -(1 << 62)),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert headers.number(field, "size") == value


@pytest.mark.parametrize("field", [b"0000649\0", b"-000644\0", b"0x1\0\0\0\0\0", b"\x81" + bytes(7), b"1_0\0\0\0\0\0"])
def test_what_is_no_number(field: bytes) -> None:
    with pytest.raises(ValueError, match="its size is not a number"):
        headers.number(field, "size")


def test_pax_records() -> None:
    body = tape.record(b"path", b"a\nb=c") + tape.record(b"path", b"last") + tape.record(b"x", b"=\n")
    assert headers.pax_records(body) == {b"path": b"last", b"x": b"=\n"}
    assert headers.pax_records(b"7 uid=\n") == {b"uid": b""}
    pairs = [(b"offset", b"0"), (b"numbytes", b"5"), (b"offset", b"9"), (b"numbytes", b"0")]
    body = b"".join(tape.record(b"GNU.sparse." + keyword, value) for keyword, value in pairs)
    assert headers.pax_records(body) == {b"GNU.sparse.map": b"0,5,9,0"}


@pytest.mark.parametrize(
    "body",
    [
        b"99 path=a\n", b"3 path=a\n", b"0 path=a\n", b"path=a\n", b"-9 path=a\n", b"10 path=a\x00", b"9 nothing\n",
        b"8 =void\n", b"10 path=ab", b"99999999999999999999999 p=a\n", b"\n", b"1 ", b"2 \n", b"\xb2 a=b\n",
    ],
)
def test_broken_pax_records(body: bytes) -> None:
    with pytest.raises(ValueError, match="a record of its pax header"):
        headers.pax_records(body)


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (b"1", 10**9), (b"1.5", 1_500_000_000), (b"0.000000001", 1), (b"0.0000000019", 1), (b"-1.5", -1_500_000_000),
        (b"1700000000.123456789", 1700000000123456789), (b"2.", 2 * 10**9),
    ],
)
def test_times(value: bytes, nanoseconds: int) -> None:
    assert headers.pax_time(value) == nanoseconds


@pytest.mark.parametrize("value", [b"", b".5", b"-", b"1e3", b"+1", b"1.-5", b"1.2.3", b" 1", b"9" * 20])
def test_what_is_no_time(value: bytes) -> None:
    with pytest.raises(ValueError, match="modification time"):
        headers.pax_time(value)
