from __future__ import annotations

import base64
import io

import pytest

from drivers.archive.errors import ArchiveError
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.reader import Entry, Kind, Reader
from tests.drivers.archive import tape


def entries(*parts: bytes, limits: Limits = DEFAULT) -> list[Entry]:
    return list(Reader(tape.stream(*parts), limits))


def only(*parts: bytes) -> Entry:
    (entry,) = entries(*parts)
    return entry


def test_entries_and_contents_in_order() -> None:
    reader = Reader(tape.stream(tape.directory(b"d/"), tape.file(b"d/a", b"1234"), tape.file(b"d/b", b"x" * 1000)))
    seen = [(entry.name, entry.kind, entry.offset, b"".join(reader.data())) for entry in reader]
    assert seen == [
        (b"d/", Kind.DIRECTORY, 0, b""), (b"d/a", Kind.FILE, 512, b"1234"), (b"d/b", Kind.FILE, 1536, b"x" * 1000),
    ]


def test_unread_and_half_read_contents_are_skipped() -> None:
    reader = Reader(tape.stream(tape.file(b"a", bytes(600 << 10)), tape.file(b"b", bytes(600 << 10)), tape.file(b"c")))
    names = []
    for entry in reader:
        names.append(entry.name)
        if entry.name == b"b":
            next(reader.data())
    assert names == [b"a", b"b", b"c"]


class Dribble:
    """A pipe that gives a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, 1))


def test_short_reads() -> None:
    reader = Reader(Dribble(tape.archive(tape.file(b"a", b"content"))))
    assert [b"".join(reader.data()) for _ in reader] == [b"content"]


def test_pax_overrides_the_header() -> None:
    records = {
        b"path": b"long/" * 60 + b"name", b"size": b"3", b"uid": b"4000000", b"gid": b"5000000",
        b"mtime": b"1700000000.123456789", b"comment": b"ignored",
    }
    reader = Reader(tape.stream(tape.pax(records), tape.file(b"short", b"abc", size=0), tape.file(b"next")))
    first, second = list(reader)
    assert first.name == b"long/" * 60 + b"name"
    assert (first.size, first.uid, first.gid, first.mtime_ns) == (3, 4000000, 5000000, 1700000000123456789)
    assert (second.name, second.uid, second.size) == (b"next", 0, 0)


def test_pax_link_path() -> None:
    assert only(tape.pax({b"linkpath": b"t" * 300}), tape.symlink(b"l", b"t")).linkname == b"t" * 300


@pytest.mark.parametrize("kind", [b"0", b"7", b"3", b"4", b"5", b"6"])
def test_only_links_lead_somewhere(kind: bytes) -> None:
    assert only(tape.pax({b"linkpath": b"t" * 300}), tape.member(b"f", kind)).linkname == b""
    assert only(tape.header(b"f", kind, link=b"t")).linkname == b""


def test_global_pax_records_hold_until_taken_back() -> None:
    a, b, c, d = entries(
        tape.pax({b"uid": b"7", b"mtime": b"5"}, b"g"), tape.file(b"a"), tape.pax({b"uid": b"8"}), tape.file(b"b"),
        tape.pax({b"uid": b""}), tape.file(b"c", uid=9), tape.file(b"d"),
    )  # fmt: skip
    assert [entry.uid for entry in (a, b, c, d)] == [7, 8, 9, 7]
    assert d.mtime_ns == 5 * 10**9


def test_gnu_long_names() -> None:
    entry = only(
        tape.extension(b"l" * 200 + b"\0", b"K"), tape.extension(b"n" * 200 + b"\0", b"L"),
        tape.symlink(b"n" * 100, b"l" * 100, magic=tape.GNU),
    )  # fmt: skip
    assert (entry.name, entry.linkname) == (b"n" * 200, b"l" * 200)


def test_base_256_numbers() -> None:
    entry = only(tape.file(b"a", b"abc", size=tape.base256(3, 12), uid=tape.base256(3_000_000, 8),
                           mtime=tape.base256(-5, 12)))  # fmt: skip
    assert (entry.size, entry.uid, entry.mtime_ns) == (3, 3_000_000, -5 * 10**9)


def test_extended_attributes_of_star_and_libarchive() -> None:
    entry = only(
        tape.pax({
            b"LIBARCHIVE.xattr.user.one": base64.b64encode(b"1\0=").rstrip(b"="),
            b"LIBARCHIVE.xattr.user.%C3%A9": base64.b64encode(b"2"),
            b"SCHILY.xattr.user.three": b"\0raw\n=",
            b"SCHILY.xattr.user.a%3Db%25": b"4",
            b"LIBARCHIVE.xattr.user.three": base64.b64encode(b"other"),
        }),
        tape.file(b"a"),
    )  # fmt: skip
    assert entry.xattrs == {
        b"user.one": b"1\0=", b"user.\xc3\xa9": b"2", b"user.three": b"\0raw\n=", b"user.a=b%": b"4",
    }


def test_attributes_of_other_systems_are_none() -> None:
    """bsdtar of macOS writes them, resource forks of any size among them."""
    records = {
        b"SCHILY.xattr.com.apple.ResourceFork": bytes(400_000), b"LIBARCHIVE.xattr.com.apple.provenance": b"!",
        b"SCHILY.xattr.user.kept": b"1",
    }  # fmt: skip
    assert only(tape.pax(records), tape.file(b"a")).xattrs == {b"user.kept": b"1"}


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"5", b"6"])
def test_only_files_have_content(kind: bytes) -> None:
    """Some writers give links the size of what they link to; no content follows them."""
    first, second = entries(tape.header(b"a", kind, size=700, link=b"t"), tape.file(b"b"))
    assert (first.size, second.name) == (0, b"b")


def test_a_long_name_ends_with_its_first_nul() -> None:
    name, link = tape.extension(b"name\0rubbish\0", b"L"), tape.extension(b"to\0\0more", b"K")
    entry = only(name, link, tape.symlink(b"x", b"y"))
    assert (entry.name, entry.linkname) == (b"name", b"to")


def test_owners_below_zero() -> None:
    """BSD's nobody is -2, as 32 bits; GNU tar writes it in base 256 and others as a pax record."""
    entry = only(tape.pax({b"gid": b"-2147483648"}), tape.file(b"a", uid=tape.base256(-2, 8)))
    assert (entry.uid, entry.gid) == ((1 << 32) - 2, 1 << 31)


def test_contiguous_files_are_files() -> None:
    assert only(tape.header(b"a", b"7", size=0)).kind is Kind.FILE


def test_an_empty_archive_has_no_entries() -> None:
    assert entries() == []


def test_what_follows_the_end_is_not_read() -> None:
    reader = Reader(io.BytesIO(tape.archive(tape.file(b"a")) + b"garbage" * 100))
    assert [entry.name for entry in reader] == [b"a"]


WRONG = {
    "a text": ([b"hello world".ljust(512, b"!")], "this is not a tar archive"),
    "sparse, pieces overlap": ([tape.old_sparse(b"f", [(0, 9), (8, 1)], 100, b"x" * 10)], "f .byte 0.: .* overlap"),
    "sparse, beyond its end": ([tape.old_sparse(b"f", [(0, 4), (95, 6)], 100, b"x" * 10)], "beyond its end"),
    "sparse, a negative piece": ([tape.sparse(b"-1,1,2,3", 10)], "its sparse map is not a number"),
    "sparse, half a piece": ([tape.sparse(b"0,1,2", 10)], "its sparse map is damaged"),
    "sparse, more than is stored": ([tape.old_sparse(b"f", [(0, 20)], 100, b"x" * 10)], "does not fit what is stored"),
    "sparse, less than is stored": ([tape.sparse(b"0,1", 10, b"xx")], "does not fit what is stored"),
    "sparse, no size": ([tape.pax({b"GNU.sparse.map": b"0,1"}), tape.file(b"f", b"x")], "its size is not a number"),
    "sparse, too many pieces": ([tape.sparse(b"0,0," * 65537, 10)], "more than 65536 pieces"),
    "sparse, a bomb": ([tape.sparse(b"", 1 << 60)], "its holes make it larger than the .* allowed in all"),
    "sparse, many bombs": ([tape.sparse(b"", 20 << 30)] * 2, "its holes make it larger"),
    "sparse, a header that goes on for ever": (
        [tape.old_sparse(b"f", [], 9, b"", more=True), *[tape.octal(0, 12) * 42 + b"\1" + bytes(7)] * 4000],
        "more than 65536 pieces",
    ),
    "sparse, text for a map": ([tape.sparse_text(b"hello", 10)], "more than 65536 pieces"),
    "sparse, a count for a map": ([tape.sparse_text(b"99999999\n", 10)], "more than 65536 pieces"),
    "sparse, a map that goes on for ever": ([tape.sparse_text(b"9\n" + b"1" * 5000, 10)], "sparse map is damaged"),
    "sparse, a map that is cut": ([tape.sparse_text(b"9\n1\n", 10)], "sparse map is"),
    "sparse, two lengths": (
        [tape.extension(tape.record(b"GNU.sparse.numbytes", b"0"), b"x"), tape.file(b"f")], "sparse map is damaged"
    ),
    "sparse, a new form": ([tape.pax({b"GNU.sparse.numblocks": b"1"}), tape.file(b"f")], "in a form that is not read"),
    "an unknown type": ([tape.header(b"label", b"V")], "label .byte 0.: its type b'V'"),
    "a negative size": ([tape.header(b"a", size=tape.base256(-1, 12))], "a .byte 0.: it says it is -1 bytes long"),
    "a huge size": ([tape.header(b"a", size=tape.base256(1 << 60, 12))], "it says it is 1152921504606846976 bytes"),
    "a size beyond 64 bits": ([tape.header(b"a", size=tape.base256(1 << 80, 12))], "it says it is"),
    "a pax size that is none": ([tape.pax({b"size": b"-1"}), tape.file(b"a")], "its size is not a number"),
    "a size that is no number": ([tape.header(b"a", size=b"99999999999\0")], "its size is not a number|a tar archive"),
    "user id -1": ([tape.pax({b"uid": b"4294967295"}), tape.file(b"a")], "user id 4294967295 is none that Linux has"),
    "group id -1": ([tape.file(b"a", gid=tape.base256(-1, 8))], "group id -1 is none"),
    "a group id below all": ([tape.file(b"a", gid=tape.base256(-(1 << 40), 8))], "group id -1099511627776 is none"),
    "a time beyond all": ([tape.file(b"a", mtime=tape.base256(1 << 80, 12))], "modification time is out of all bounds"),
    "a pax header without its entry": ([tape.pax({b"path": b"x"})], "behind an extended header"),
    "a long name without its entry": ([tape.extension(b"x\0", b"L")], "behind an extended header"),
    "a broken pax header": ([tape.extension(b"5 path=x\n", b"x"), tape.file(b"a")], "wrong length"),
    "base64 that is none": ([tape.pax({b"LIBARCHIVE.xattr.user.a": b"!"}), tape.file(b"a")], "is not base64"),
    "a second header garbled": ([tape.file(b"first"), tape.header(b"second", checksum=b"000000\0 ")], "behind first"),
    "too small a size": ([tape.file(b"liar", b"x" * 600, size=10)], "behind liar is damaged: .*lied about its size"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "says"), WRONG.values(), ids=WRONG)
def test_damage_is_named(parts: list[bytes], says: str) -> None:
    with pytest.raises(ArchiveError, match=says) as caught:
        entries(*parts)
    assert "\n" not in str(caught.value)


# Entries, and how many bytes at their ends only fill up a block.
PARTS = (
    (tape.directory(b"d/"), 0),
    (tape.pax({b"path": b"d/" + b"p" * 200}) + tape.file(b"p", b"x" * 700), 324),
    (tape.extension(b"d/" + b"g" * 200 + b"\0", b"L") + tape.symlink(b"g", b"target"), 0),
    (tape.file(b"d/last", b"y"), 511),
)


def test_an_archive_ends_behind_an_entry() -> None:
    """umoci's insert writes no end mark, nor what fills up the last entry's block; Go and GNU tar read such. A cut
    anywhere else is seen: in a header, between one and its extension, in a content."""
    whole = tape.archive(*(part for part, _ in PARTS))
    ends, position = {0: 0}, 0
    for count, (part, filling) in enumerate(PARTS, 1):
        position += len(part)
        ends |= dict.fromkeys(range(position - filling, position + 1), count)
    for cut in {*range(0, position + 513, 256), *range(1, position, 511), *ends}:
        read = Reader(io.BytesIO(whole[:cut]))
        if cut in ends or cut == position + 512:
            assert len(list(read)) == ends.get(cut, len(PARTS))
        else:
            with pytest.raises(ArchiveError, match=r"cut short|behind an extended header"):
                list(read)
    for more in (1, 1024):
        assert len(list(Reader(io.BytesIO(whole[: position + 512 + more])))) == 4


def test_a_cut_names_the_entry_and_what_is_missing() -> None:
    whole = tape.archive(tape.file(b"a"), tape.file(b"etc/passwd", b"x" * 700))
    with pytest.raises(ArchiveError, match=r"^etc/passwd \(byte 1536\): the archive is cut short, 188 bytes"):
        list(Reader(io.BytesIO(whole[:1536])))


def test_limits() -> None:
    with pytest.raises(ArchiveError, match="more than 2 entries"):
        entries(tape.file(b"a"), tape.file(b"b"), tape.file(b"c"), limits=Limits(entries=2))
    with pytest.raises(ArchiveError, match="1000 bytes long, the archive may have 1000 in all"):
        entries(tape.file(b"a", b"x" * 1000), limits=Limits(total=1000))
    with pytest.raises(ArchiveError, match="larger than the 1500 bytes"):
        entries(tape.file(b"a"), tape.file(b"b"), tape.file(b"c"), limits=Limits(total=1500))
    with pytest.raises(ArchiveError, match="pax header of 2008 bytes is over the 1000"):
        entries(tape.pax({b"a": b"x" * 2000}), tape.file(b"f"), limits=Limits(metadata=1000))
    with pytest.raises(ArchiveError, match="extended attributes are over the 100 bytes"):
        entries(tape.pax({b"SCHILY.xattr.user.a": b"x" * 200}), tape.file(b"f"), limits=Limits(xattrs=100))
    with pytest.raises(ArchiveError, match="more than 64 global records"):
        entries(*[tape.pax({b"SCHILY.xattr.user.%d" % number: b"x"}, b"g") for number in range(70)])
    with pytest.raises(ArchiveError, match="larger than"):  # extension headers alone are no way around it
        entries(*[tape.pax({b"a": b"b"}, b"g")] * 20, limits=Limits(total=5000))
