"""Random archives: whatever they ask for, nothing beside the root changes, and validation and extraction agree."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from drivers.archive.errors import ArchiveError
from drivers.archive.extract import extract
from drivers.archive.validate import validate
from tests.drivers.archive import tape
from tests.trees import File, Symlink, Tree, build

RELAXED = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

# Few names, so that entries meet; the ways out are among them. VICTIM stands for the path beside the root.
HARMLESS = [b"a", b"b", b"lib", b"evil"]
WHITEOUTS = [b".wh.a", b".wh..wh..opq", b".wh..wh.plnk"]
PARTS = st.sampled_from([*HARMLESS, *WHITEOUTS, b"victim", b"secret", b"root", b".", b"..", b""])
NAMES = st.one_of(
    st.lists(PARTS, min_size=1, max_size=4).map(b"/".join),
    st.lists(st.sampled_from(HARMLESS), min_size=1, max_size=4).map(b"/".join),
    st.sampled_from([b"VICTIM", b"VICTIM/secret", b"/proc/self/cwd", b"a", b"evil/secret", b".wh..wh.plnk/1"]),
)
MODES = st.sampled_from([0o644, 0o777, 0o4755])
ENTRIES = st.one_of(
    st.tuples(st.sampled_from([b"0", b"3", b"5", b"6", b"7"]), NAMES, st.just(b""), MODES),
    st.tuples(st.sampled_from([b"1", b"2", b"2"]), NAMES, NAMES, MODES),
)
ARCHIVES = st.lists(ENTRIES, max_size=12)


def archive(entries: list[tuple[bytes, bytes, bytes, int]], victim: bytes) -> bytes:
    return tape.archive(*[
        tape.member(
            name.replace(b"VICTIM", victim), kind, b"pwned" if kind in b"07" and b".wh." not in name else b"",
            link.replace(b"VICTIM", victim), mode=mode, uid=4321, mtime=42,
        )
        for kind, name, link, mode in entries
    ])  # fmt: skip


@contextlib.contextmanager
def beside_a_victim() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as place:
        root = f"{place}/root"
        os.mkdir(root)
        tree: Tree = {"secret": File("s", mode=0o600), "a": {"b": "x"}, "lib": Symlink(target="a")}
        victim = build(f"{place}/victim", tree)
        before = tape.snapshot(victim)
        yield root, victim
        assert tape.snapshot(victim) == before
        assert sorted(os.listdir(place)) == ["root", "victim"]


def attempt(data: bytes, root: str) -> str:
    """Extract, and give the refusal or what was extracted, as text."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return str(extract(io.BytesIO(data), fd))
    except ArchiveError as error:
        assert "\n" not in str(error)
        return str(error)
    finally:
        os.close(fd)


def judge(data: bytes) -> str:
    try:
        return str(validate(io.BytesIO(data)))
    except ArchiveError as error:
        return str(error)


@RELAXED
@given(ARCHIVES)
@example([(b"2", b"evil", b"VICTIM", 0o777), (b"0", b"evil/secret", b"", 0o777)])
@example([(b"2", b"evil", b"..", 0o777), (b"1", b"a", b"evil/victim/secret", 0o777)])
@example([(b"2", b"a", b"VICTIM/secret", 0o777), (b"1", b"b", b"a", 0o4755), (b"0", b"b", b"", 0o777)])
def test_nothing_beside_the_root_changes(entries: list[tuple[bytes, bytes, bytes, int]]) -> None:
    with beside_a_victim() as (root, victim):
        data = archive(entries, os.fsencode(victim))
        assert attempt(data, root) == judge(data)


@RELAXED
@given(ARCHIVES, ARCHIVES)
def test_nor_over_what_an_archive_left(
    first: list[tuple[bytes, bytes, bytes, int]], second: list[tuple[bytes, bytes, bytes, int]]
) -> None:
    """The root holds hostile links already, and the second archive has whiteouts for them."""
    with beside_a_victim() as (root, victim):
        for entries in (first, second):
            attempt(archive(entries, os.fsencode(victim)), root)


@RELAXED
@given(ARCHIVES, st.data())
def test_a_damaged_archive_is_refused_or_read(
    entries: list[tuple[bytes, bytes, bytes, int]], data: st.DataObject
) -> None:
    """Bytes changed anywhere, checksums made right again or not: an ArchiveError, or an extraction; nothing else."""
    with beside_a_victim() as (root, victim):
        damaged = bytearray(archive(entries, os.fsencode(victim)))
        for _ in range(data.draw(st.integers(1, 6))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            for start in range(0, len(damaged) - 1024, 512):
                block = damaged[start : start + 512]
                block[148:156] = b" " * 8
                damaged[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        cut = data.draw(st.one_of(st.none(), st.integers(0, len(damaged))))
        attempt(bytes(damaged[:cut]), root)
