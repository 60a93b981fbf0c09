"""The lines of --debug."""

from __future__ import annotations

import errno
from struct import pack
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unionfs.fuse.golden import REQUESTS
from unionfs.fuse import abi, reply
from unionfs.fuse.request import Malformed, Request, Unintelligible, parse
from unionfs.fuse.wiretext import of, rx, tx

STATUS = SimpleNamespace(
    st_mode=0o100644, st_uid=0, st_gid=0, st_rdev=0, st_size=5, st_blocks=8, st_blksize=4096,
    st_atime_ns=10**9, st_mtime_ns=2 * 10**9, st_ctime_ns=3 * 10**9 + 7,
)
ATTR = "ino=2 size=5 blocks=8 atime=1 mtime=2 ctime=3 ctimensec=7 mode=0100644 nlink=1 blksize=4096"


def request(name: str) -> Request:
    return parse(memoryview(REQUESTS[name].message))


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(name: str) -> None:
    golden = REQUESTS[name]
    parsed = request(name)
    assert of(parsed) == golden.line
    assert rx(golden.message) == f"rx {parsed.unique}: {golden.line}"


@pytest.mark.parametrize(
    "name, answer, line",
    [
        ("LOOKUP", reply.error(4, errno.ENOENT), "tx 4: ENOENT"),
        ("LOOKUP", reply.entry(4, 2, 2, 1, STATUS, 9, 8), f"tx 4: OK nodeid=2 entry_valid=9 attr_valid=8 {ATTR}"),
        ("LOOKUP", reply.no_entry(4, 9), "tx 4: OK entry_valid=9"),
        ("GETATTR", reply.attr(4, 2, 1, STATUS, 0), f"tx 4: OK {ATTR}"),
        ("OPEN", reply.opened(4, 77, abi.FOPEN_PASSTHROUGH, 3), "tx 4: OK fh=77 open_flags=0x80 backing_id=3"),
        ("READ", reply.data(4, b"hello"), "tx 4: OK 5 bytes"),
        ("WRITE", reply.written(4, 5), "tx 4: OK size=5"),
        ("GETXATTR", reply.data(4, bytes(8)), "tx 4: OK 8 bytes"),
        ("LSEEK", reply.offset(4, 9), "tx 4: OK offset=9"),
        ("COPY_FILE_RANGE_64", reply.copied(4, 1 << 40), "tx 4: OK bytes_copied=1099511627776"),
        ("IOCTL", reply.ioctl(4, 0, b"flag"), "tx 4: OK 4 bytes"),
        ("UNLINK", reply.ok(4), "tx 4: OK"),
    ],
)
def test_answers(name: str, answer: bytes, line: str) -> None:
    assert tx(answer, request(name)) == line


def test_the_size_of_a_value_is_told_apart_from_a_value() -> None:
    raw = bytearray(REQUESTS["GETXATTR"].message)
    raw[40:44] = bytes(4)
    assert tx(reply.xattr_size(4, 8), parse(memoryview(raw))) == "tx 4: OK size=8"


def test_names_cannot_break_the_line() -> None:
    raw = pack("<IIQQIIIHH", 46, abi.FUSE_LOOKUP, 7, 1, 0, 0, 0, 0, 0) + b"a\n\xff'\x1b\0"
    assert rx(raw) == """rx 7: LOOKUP i1 ["a\\n\\xff'\\x1b"] by 0:0 pid 0"""


def test_what_cannot_be_parsed() -> None:
    raw = REQUESTS["LOOKUP"].message
    assert rx(raw[:-1]) == "rx 4: malformed: LOOKUP (request 4) says it has 42 bytes, but has 41"
    assert rx(raw[:39]) == "rx: unintelligible: a message of 39 bytes; its header has 40"
    assert tx(b"123") == "tx: 3 bytes"
    assert tx(abi.OUT_HEADER.pack(16, 99, 0)) == "tx: notification 99"
    assert tx(abi.OUT_HEADER.pack(16, -4000, 5)) == "tx 5: -4000"


@given(st.binary(max_size=120), st.sampled_from([None, *REQUESTS]))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_any_bytes_are_one_line(raw: bytes, name: str | None) -> None:
    lines = [rx(raw), tx(raw, None if name is None else request(name))]
    try:
        lines.append(of(parse(memoryview(raw))))
    except (Malformed, Unintelligible):
        pass  # rx has told it
    assert all(line and "\n" not in line for line in lines)
