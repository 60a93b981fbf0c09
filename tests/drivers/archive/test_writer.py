"""Archives that we write: read back, they say the same; byte for byte they are what is said here; others read them."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.archive.errors import ArchiveError
from drivers.archive.headers import BLOCK
from drivers.archive.limits import Limits
from drivers.archive.reader import Entry, Kind, Reader
from drivers.archive.writer import Writer
from drivers.diff import write_tree
from tests.drivers.archive import tape
from tests.trees import Dir, File, Special, Symlink, assert_same, build, read

ACL = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff 20000400ffffffff")
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def entry(name: bytes, kind: Kind = Kind.FILE, **fields: object) -> Entry:
    values: dict[str, object] = {
        "mode": 0o644, "uid": 0, "gid": 0, "size": 0, "mtime_ns": 10**18, "linkname": b"", "major": 0, "minor": 0,
        "xattrs": {}, "offset": 0,
    } | fields  # fmt: skip
    return Entry(name, kind, **values)  # type: ignore[arg-type]


def written(*members: tuple[Entry, Iterable[bytes]]) -> bytes:
    out = io.BytesIO()
    writer = Writer(out.write)
    for one, content in members:
        writer.add(one, content)
    writer.finish()
    assert writer.size == len(out.getvalue())
    return out.getvalue()


def same(ours: Entry) -> None:
    data = written((ours, ()))
    (back,) = Reader(io.BytesIO(data), Limits(total=1 << 62))
    ours.offset = back.offset
    assert back == ours


def test_what_ustar_can_say_is_one_block() -> None:
    """The same bytes as the tests' own writer makes, but for the names of users."""
    ours = written((entry(b"d/f", mode=0o4755, uid=1, gid=2, size=3), [b"abc"]))
    theirs = tape.archive(tape.file(b"d/f", b"abc", mode=0o4755, uid=1, gid=2))
    assert len(ours) == len(theirs)
    fields = [(0, 148), (156, 265), (329, 512), (512, len(ours))]
    assert [ours[a:b] for a, b in fields] == [theirs[a:b] for a, b in fields]


@pytest.mark.parametrize("length", [1, 99, 100, 101, 155, 156, 255, 256, 257, 1000, 4095])
@pytest.mark.parametrize("part", [b"n", b"d/", b"\xff", b"ddddddddd/"])
def test_names_of_any_length(length: int, part: bytes) -> None:
    name = (part * length)[:length]
    same(entry(name.rstrip(b"/") or b"d"))
    same(entry(b"link", Kind.SYMLINK, linkname=name))
    same(entry(name.rstrip(b"/") + b"/", Kind.DIRECTORY) if length < 4095 else entry(b"d/", Kind.DIRECTORY))


def test_a_name_beyond_all_readers() -> None:
    with pytest.raises(ArchiveError, match="a name of 5000 bytes, 4095 are possible in a layer"):
        written((entry(b"n" * 5000), ()))


@given(
    st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/")),
    st.integers(0, (1 << 32) - 2), st.integers(-(1 << 40), 1 << 62),
    st.dictionaries(st.binary(min_size=1, max_size=9).filter(lambda b: b"\0" not in b), st.binary(max_size=300)),
)  # fmt: skip
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_anything_is_read_back(name: bytes, owner: int, time: int, attributes: dict[bytes, bytes]) -> None:
    xattrs = {b"user." + key: value for key, value in attributes.items()}
    same(entry(name, uid=owner, gid=owner, mtime_ns=time, xattrs=xattrs))


def test_sizes_beyond_eight_gigabytes() -> None:
    total = 0

    def count(piece: bytes) -> None:
        nonlocal total
        total += len(piece)
        if total <= 4 * BLOCK:
            head.append(piece)

    head: list[bytes] = []
    Writer(count).add(entry(b"big", size=(8 << 30) + 1))
    first = next(iter(Reader(io.BytesIO(b"".join(head)), Limits(total=1 << 62))))
    assert first.size == (8 << 30) + 1
    assert total == 3 * BLOCK + (8 << 30) + BLOCK


@pytest.mark.parametrize(("given", "found"), [(b"abc", b"abc\0\0"), (b"abcdefgh", b"abcde"), (b"", b"\0\0\0\0\0")])
def test_a_file_that_changes_while_it_is_read(given: bytes, found: bytes) -> None:
    """Its size was promised in the header: the next entry is found all the same."""
    data = written((entry(b"f", size=5), [given]), (entry(b"g", size=1), [b"x"]))
    reader = Reader(io.BytesIO(data))
    assert [(one.name, b"".join(reader.data())) for one in reader] == [(b"f", found), (b"g", b"x")]


# What others read.

NS = 1_600_000_000_123_456_789
TREE = {
    "bin": Dir({"su": File("s", mode=0o4755), "ls": File(bytes(range(256)) * 300, mode=0o755)}, mode=0o751, uid=3),
    "empty": "", "holes": File("data", holes=1 << 20), "before": File("x", mtime_ns=-1_500_000_000),
    "capable": File("elf", mode=0o755, xattrs={"security.capability": CAPABILITY}, mtime_ns=NS),
    "noted": File("x", xattrs={"user.note": b"a\0b\n\xff", "user.a=b%": b"c"}, mtime_ns=NS),
    "acl": File("x", xattrs={"system.posix_acl_access": ACL}, mode=0o644), "ünï": "utf-8",
    "owned": File("x", uid=70_000, gid=4_000_000_000, mtime_ns=NS), "caf\udce9\n\t'\"\\": "latin one",
    "l" * 100: "100", "l" * 101: "101", "l" * 255: "255", "dir": {"n" * 120: {"m" * 120: File("long", mtime_ns=NS)}},
    "\udcff" * 130: File("long and not utf-8", mtime_ns=NS),
    "link": Symlink(target="bin/ls", mtime_ns=NS), "broken": Symlink(target="/nowhere/" + "\udcfft" * 90),
    "pipe": Special(mode=0o622), "null": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o666),
    "disk": Special(type=stat.S_IFBLK, rdev=os.makedev(259, 70_000), mode=0o660),
}  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    source = build(str(tmp_path / "source"), TREE)  # type: ignore[arg-type]
    os.link(f"{source}/bin/ls", f"{source}/dir/linked")
    os.link(f"{source}/link", f"{source}/zlink", follow_symlinks=False)
    fd = os.open(source, os.O_RDONLY)
    try:
        with open(tmp_path / "a.tar", "wb") as out:
            assert write_tree(fd, out.write) == out.tell()
        again = io.BytesIO()
        write_tree(fd, again.write)
    finally:
        os.close(fd)
    assert (tmp_path / "a.tar").read_bytes() == again.getvalue()
    return tmp_path / "a.tar"


@pytest.mark.needs("root")
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_other_programs_make_the_same_tree(program: str, locale: str, archive: Path, tmp_path: Path) -> None:
    """GNU tar says that it does not know hdrcharset, and takes names as they are; it is right in that."""
    from tests.capabilities import missing

    if reason := missing(f"program:{program}"):
        pytest.skip(reason)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    flags = ["--xattrs", *(["--xattrs-include=*", "--numeric-owner"] if program == "tar" else [])]
    subprocess.run(
        [program, "-C", theirs, "-xpf", archive, *flags], check=True, env={**os.environ, "LC_ALL": locale},
        capture_output=True,
    )  # fmt: skip
    want, got = read(str(tmp_path / "source")), read(str(theirs))
    if program == "bsdtar":
        # libarchive 3.6 reads -1.5 as half a second before 1970, leaves %3D in an attribute's name, and knows ACLs in
        # words only; docker, containerd and buildkit write and read them as attributes.
        for name in ("before", "noted", "acl"):
            del want[name], got[name]
    assert_same(want, got, f"by {program}")


def test_python_reads_the_same(archive: Path, tmp_path: Path) -> None:
    found = read(str(tmp_path / "source"))
    with tarfile.open(archive, encoding="utf-8", errors="surrogateescape") as opened:
        members = {member.name: member for member in opened}
        for name, member in members.items():
            want = found[name]
            assert (member.mode, member.uid, member.gid) == (want.mode, want.uid, want.gid), name
            if want.mtime_ns is not None:
                assert member.mtime == pytest.approx(want.mtime_ns / 1e9)
            if member.isreg():
                content = opened.extractfile(member)
                assert content is not None and content.read() == want.content
    assert set(members) == set(found)
    assert {name: member.linkname for name, member in members.items() if member.islnk()} == {
        "dir/linked": "bin/ls", "zlink": "link",
    }  # fmt: skip
