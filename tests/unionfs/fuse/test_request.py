"""Parsing: what the kernel sends, and what it never would."""

from __future__ import annotations

import errno
import random
from struct import pack, pack_into

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unionfs.fuse.golden import REQUESTS, Golden, unannotated
from unionfs.fuse import abi, table
from unionfs.fuse.request import Malformed, Request, Unintelligible, parse

GOLDEN = list(REQUESTS.values())
SILENT = {abi.FUSE_FORGET, abi.FUSE_BATCH_FORGET, abi.FUSE_INTERRUPT, abi.FUSE_NOTIFY_REPLY}


def message(opcode: int, body: bytes = b"", *, unique: int = 7, extensions: int = 0) -> bytes:
    return pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 1, 1000, 100, 9, extensions, 0) + body


def refused(raw: bytes) -> Malformed:
    with pytest.raises(Malformed) as caught:
        parse(memoryview(raw))
    return caught.value


@pytest.mark.parametrize("golden", GOLDEN, ids=list(REQUESTS))
def test_what_the_kernel_sends(golden: Golden) -> None:
    raw = golden.message
    request = parse(memoryview(raw))
    assert (request.fields, request.names, bytes(request.data)) == (golden.fields, golden.names, golden.data)
    header = (request.opcode, request.unique, request.nodeid, request.uid, request.gid, request.pid)
    assert header == abi.IN_HEADER.unpack_from(raw)[1:7]


def test_data_is_a_view_of_the_buffer() -> None:
    """A write is not copied on its way to the file."""
    buffer = bytearray(REQUESTS["WRITE"].message)
    data = parse(memoryview(buffer)).data
    buffer[-5:] = b"HELLO"
    assert data == b"HELLO"


def test_extensions_of_several_words_are_left_out() -> None:
    """fuse_secctx with a context, and fuse_supp_groups: after the name, which stays as it is."""
    extensions = unannotated("""
        20000000 01000000  # fuse_secctx_header: 32 bytes, one context
        05000000 00000000  # fuse_secctx: 5 bytes
        73656c696e757800   # "selinux"
        6c6162656c000000   # "label", padding
        18000000 20000000  # fuse_ext_header: 24 bytes, FUSE_EXT_GROUPS
        02000000           # fuse_supp_groups: 2
        64000000 65000000  # 100, 101
        00000000           # padding
    """)
    raw = message(abi.FUSE_MKDIR, pack("<II", 0o755, 0o22) + b"new\0" + extensions, extensions=7)
    request = parse(memoryview(raw))
    assert (request.fields, request.names, request.data) == ((0o755, 0o22), [b"new"], b"")


def test_init_of_other_versions_is_read_as_far_as_it_goes() -> None:
    """Before 7.36 it has 16 bytes; a later major version promises major and minor and nothing else."""
    def fields(body: bytes) -> tuple[int, ...]:
        return parse(memoryview(message(abi.FUSE_INIT, body))).fields

    assert fields(pack("<IIII", 7, 31, 1 << 17, 0x3FFFFFFF)) == (7, 31, 1 << 17, 0x3FFFFFFF, 0)
    assert fields(pack("<II", 8, 0)) == (8, 0, 0, 0, 0)
    assert fields(pack("<II", 8, 0) + bytes(120)) == (8, 0, 0, 0, 0)
    assert refused(message(abi.FUSE_INIT, pack("<I", 7))).code == errno.EIO


@pytest.mark.parametrize("golden", GOLDEN, ids=list(REQUESTS))
def test_every_shorter_message_is_malformed(golden: Golden) -> None:
    """Its length corrected, so that only the content tells; but INIT, which older kernels send shorter."""
    raw = golden.message
    opcode, extensions = abi.IN_HEADER.unpack_from(raw)[1], 8 * abi.IN_HEADER.unpack_from(raw)[7]
    for size in range(40, len(raw)):
        short = bytearray(raw[:size])
        pack_into("<I", short, 0, size)
        if opcode == abi.FUSE_INIT and size >= 48:
            assert parse(memoryview(short)).fields[:2] == (7, 45)
            continue
        if opcode == abi.FUSE_SYMLINK and size - extensions >= 40 and bytes(short[40:size - extensions]).count(0) == 2:
            continue  # what is left is two names still
        error = refused(bytes(short))
        assert error.code == errno.EIO
        assert error.answers == (opcode not in SILENT)


def test_a_longer_message_is_malformed() -> None:
    for golden in GOLDEN:
        raw = golden.message
        body, opcode, extensions = raw[40:], *abi.IN_HEADER.unpack_from(raw)[1::6]
        cut = len(body) - 8 * extensions
        longer = message(opcode, body[:cut] + b"x" + body[cut:], extensions=extensions)
        if opcode == abi.FUSE_INIT:
            assert parse(memoryview(longer)).fields == golden.fields
        else:
            assert refused(longer).code == errno.EIO


@pytest.mark.parametrize("lie", [0, 39, -1, 1, 0xFFFFFFFF])
def test_a_header_that_lies_about_the_length(lie: int) -> None:
    for golden in GOLDEN:
        raw = bytearray(golden.message)
        pack_into("<I", raw, 0, lie if lie not in (-1, 1) else len(raw) + lie)
        error = refused(bytes(raw))
        assert (error.code, error.unique) == (errno.EIO, abi.IN_HEADER.unpack_from(raw)[2])


@pytest.mark.parametrize("count", [1, 31, 33, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_count_that_lies_about_the_data(count: int) -> None:
    """32 bytes of NULs: 31 of them are no name of SETXATTR either."""
    for row in table.ROWS:
        if row is not None and row.request is not None and row.data:
            fields = [count if index == row.counted else 0 for index in range(len(abi.FIELDS[row.request]))]
            if (row.opcode, count) == (abi.FUSE_SETXATTR, 31):
                continue  # an empty name and 31 bytes: no lie
            assert refused(message(row.opcode, row.request.pack(*fields) + bytes(32))).code == errno.EIO


def test_a_count_beyond_the_message_does_not_count_from_its_end() -> None:
    """53 bytes and a value of 56: three before the first byte is not three before the last."""
    assert refused(message(abi.FUSE_SETXATTR, pack("<II", 56, 0) + b"a\0xyz")).code == errno.EIO


@pytest.mark.parametrize("opcode", [0, 7, 19, 54, abi.CUSE_INIT, 1 << 20, 26 << 24, 0xFFFFFFFF])
def test_an_unknown_opcode_is_answered_with_enosys(opcode: int) -> None:
    error = refused(message(opcode, bytes(24)))
    assert (error.code, error.unique, error.answers) == (errno.ENOSYS, 7, True)
    assert table.name(opcode) in str(error)


@pytest.mark.parametrize(
    "opcode, body",
    [
        (abi.FUSE_LOOKUP, b""), (abi.FUSE_LOOKUP, b"name"), (abi.FUSE_LOOKUP, b"a\0b\0"), (abi.FUSE_LOOKUP, b"a\0b"),
        (abi.FUSE_SYMLINK, b"name\0"), (abi.FUSE_SYMLINK, b"name\0target"), (abi.FUSE_SYMLINK, b"a\0b\0c\0"),
        (abi.FUSE_RENAME, pack("<Q", 1) + b"a\0"), (abi.FUSE_RENAME, pack("<Q", 1) + b"a\0b"),
        (abi.FUSE_SETXATTR, pack("<II", 3, 0) + b"userabc"), (abi.FUSE_SETXATTR, pack("<II", 3, 0) + b"a\0b\0abc"),
    ],
)
def test_names_that_do_not_end_or_are_too_many(opcode: int, body: bytes) -> None:
    assert refused(message(opcode, body)).code == errno.EIO


def test_less_than_a_header_is_unintelligible() -> None:
    for size in range(40):
        with pytest.raises(Unintelligible):
            parse(memoryview(REQUESTS["LOOKUP"].message[:size]))


@pytest.mark.parametrize("raw", [
    message(abi.FUSE_LOOKUP, b"a\0", unique=0), message(99, unique=0), message(abi.FUSE_LOOKUP, b"a", unique=0),
    b"\3" + message(abi.FUSE_LOOKUP, b"a\0", unique=0)[1:],
])
def test_unique_0_is_unintelligible(raw: bytes) -> None:
    """An answer to it would be taken for a notification."""
    with pytest.raises(Unintelligible):
        parse(memoryview(raw))


def test_unique_0_does_not_matter_where_nothing_is_answered() -> None:
    assert parse(memoryview(message(abi.FUSE_FORGET, pack("<Q", 3), unique=0))).fields == (3,)
    assert not refused(message(abi.FUSE_FORGET, b"", unique=0)).answers


def outcome(raw: bytes) -> Request | Malformed | Unintelligible:
    """Anything else that parse does fails the test."""
    try:
        return parse(memoryview(raw))
    except (Malformed, Unintelligible) as error:
        return error


def check(raw: bytes) -> None:
    result = outcome(raw)
    if isinstance(result, Unintelligible):
        assert len(raw) < 40 or raw[8:16] == bytes(8)
        return
    assert result.unique == int.from_bytes(raw[8:16], "little")
    if isinstance(result, Malformed):
        assert result.code in (errno.EIO, errno.ENOSYS)
        return
    row = table.ROWS[result.opcode]
    assert row is not None
    assert len(result.names) == row.names
    assert not any(b"\0" in name for name in result.names)
    if row.request is not None:
        assert len(result.fields) == len(abi.FIELDS[row.request])
    if row.data:
        assert len(result.data) == result.fields[row.counted] * row.unit
    else:
        assert result.data == b""


_SETTINGS = settings(max_examples=250, deadline=None, derandomize=True, database=None)


@given(st.binary(max_size=200))
@_SETTINGS
def test_any_bytes(raw: bytes) -> None:
    check(raw)


@given(st.integers(0, 60), st.integers(0, 4), st.binary(max_size=160), st.integers(0, 24))
@_SETTINGS
def test_any_body(opcode: int, unique: int, body: bytes, extensions: int) -> None:
    check(message(opcode, body, unique=unique, extensions=extensions))
    check(message(opcode, body, unique=unique, extensions=0xFFFF - extensions))


@given(
    st.sampled_from(GOLDEN),
    st.lists(st.tuples(st.integers(0, 140), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(-12, 12),
    st.booleans(),
)
@_SETTINGS
def test_mutated_requests(
    golden: Golden, changes: list[tuple[int, int]], resize: int, honest: bool
) -> None:
    check(mutated(golden, changes, resize, honest))


def mutated(golden: Golden, changes: list[tuple[int, int]], resize: int, honest: bool) -> bytes:
    """Bytes changed, the end cut or stretched, and the length in the header put right or not."""
    raw = bytearray(golden.message)
    raw = raw[: len(raw) + resize] if resize < 0 else raw + bytes(resize)
    for at, value in changes:
        if at < len(raw):
            raw[at] = value
    if honest:
        pack_into("<I", raw, 0, len(raw))
    return bytes(raw)


def test_twenty_thousand_mutations() -> None:
    """Where hypothesis looks for the telling few, this one goes for numbers."""
    dice = random.Random(7)
    for _ in range(20_000):
        changes = [(dice.randrange(140), dice.choice((0, 1, 2, 16, 127, 255))) for _ in range(dice.randrange(1, 5))]
        check(mutated(dice.choice(GOLDEN), changes, dice.choice((0, 0, 0, -9, -1, 1, 8)), dice.random() < 0.9))
