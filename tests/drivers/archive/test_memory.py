"""Memory: what an archive may cost is bounded by what it is allowed to bring, and not by what it names.

Each of these is a few kilobytes when it is compressed.
"""

from __future__ import annotations

import gc
import os
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.archive.errors import ArchiveError
from drivers.archive.extract import Extracted, extract
from drivers.archive.limits import Limits
from drivers.archive.validate import validate
from tests.drivers.archive import tape
from tests.drivers.archive.tape import directory, file, hard_link, header, pax, sparse, symlink

_MIB = 1 << 20
_DEEP = b"aa/" * 1009
_LESS_DEEP = b"aa/" * 250


def _chains(count: int, deep: bytes = _DEEP) -> list[bytes]:
    return [directory(b"%d/" % number + deep) for number in range(count)]


BOMBS: dict[str, Callable[[], list[bytes]]] = {
    "directories that nothing else names": lambda: [file(b"%d/" % number + _DEEP + b"f") for number in range(1000)],
    "named again": lambda: _chains(300) + _chains(300),
    "named again through a link": lambda: [
        *_chains(300), symlink(b"l", b"."), *(directory(b"l/%d/" % number + _DEEP) for number in range(20)),
    ],
    "each with a second entry somewhere": lambda: [
        *_chains(300), *(file(b"%d/" % number + _DEEP[: 3 * number] + b"x") for number in range(300)),
    ],
    "replaced by a file": lambda: [chain + file(b"%d" % number) for number, chain in enumerate(_chains(200))],
    "long names": lambda: [file(b"%015d" % number + b"n" * 240) for number in range(9_000)],
    "long link targets": lambda: [symlink(b"%d" % number, b"./" * 2000) for number in range(1000)],
    "hard links": lambda: [file(b"f"), *(hard_link(b"%d" % number, b"./" * 2000 + b"f") for number in range(1000))],
    "whiteouts": lambda: [file(b"%d/" % number + _DEEP + b".wh.x") for number in range(1000)],
    "many records": lambda: [*[pax({b"%x" % number: b"" for number in range(45_000)}) + file(b"f")] * 3],
    "global records": lambda: [*(pax({b"%d" % number: bytes(1_000_000)}, b"g") for number in range(40)), file(b"f")],
    "attributes": lambda: [
        pax({b"SCHILY.xattr.user.%d" % n: b"v" * 20 for n in range(1_500)}) + file(b"%d" % number)
        for number in range(20)
    ],
    "pseudo-links": lambda: [
        pax({b"SCHILY.xattr.trusted.large": bytes(200_000)}) + file(b".wh..wh.plnk/%d" % number)
        for number in range(200)
    ],
    "pseudo-links with link targets": lambda: [
        pax({b"linkpath": bytes(200_000)}) + file(b".wh..wh.plnk/%d" % number) for number in range(200)
    ],
    "pseudo-links with long names": lambda: [
        file(b"./" * 1900 + b".wh..wh.plnk/%d" % number) for number in range(2000)
    ],
    "overlay's whiteouts": lambda: [header(b"%d/" % number + _DEEP + b"x", b"3") for number in range(1000)],
    "sparse pieces": lambda: [sparse(b",".join([b"0"] * (1 << 17)), 0) for _ in range(3)],
    "too many sparse pieces": lambda: [sparse(b",".join([b"0"] * (1 << 18)), 0)],
}  # fmt: skip


@pytest.fixture
def root(memory: Path) -> str:
    """It is no disk's work that is looked at, and here are tens of thousands of directories."""
    (memory / "root").mkdir()
    return str(memory / "root")


# So that what is bounded by a limit meets it: each of these archives would bring a multiple of it.
_LIMITS = Limits(names=2 * _MIB, entries=400_000)


def _peak(work: Callable[[], object]) -> float:
    """MiB that were in use at once for `work`, which may refuse the archive."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
    except ArchiveError as error:
        assert "more than" in str(error) or "over" in str(error), error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak / _MIB


@pytest.mark.parametrize("bomb", BOMBS)
def test_validation(bomb: str) -> None:
    parts = BOMBS[bomb]()
    assert len(zlib.compress(tape.archive(*parts))) < 1.5 * _MIB
    stream = tape.stream(*parts)
    del parts
    assert _peak(lambda: validate(stream, limits=_LIMITS)) < 20


# The disk has the directories too, and time goes with the square of a depth: these are less deep, and eight thousand.
ON_DISK: dict[str, Callable[[], list[bytes]]] = {
    "named again": lambda: _chains(32, _LESS_DEEP) * 2,
    "replaced by a file": lambda: [chain + file(b"%d" % n) for n, chain in enumerate(_chains(32, _LESS_DEEP))],
    "each with a second entry somewhere": lambda: [
        *_chains(32, _LESS_DEEP), *(file(b"%d/" % n + _LESS_DEEP[: 24 * n] + b"x") for n in range(32)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("bomb", ON_DISK)
def test_extraction(bomb: str, unpack: Callable[..., Extracted]) -> None:
    parts = ON_DISK[bomb]()
    assert _peak(lambda: unpack(*parts)) < 3


@pytest.mark.parametrize("bomb", [bomb for bomb in BOMBS if bomb.startswith("pseudo-links")])
def test_extraction_of_pseudo_links(root: str, bomb: str) -> None:
    stream = tape.stream(*BOMBS[bomb]())
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert _peak(lambda: extract(stream, fd)) < 3
    finally:
        os.close(fd)


def test_an_honest_archive(root: str) -> None:
    stream = tape.stream(*(file(b"usr/share/doc/package-%d/changelog-%d.gz" % (n // 10, n)) for n in range(20_000)))
    assert _peak(lambda: validate(stream)) < 20_000 * 250 / _MIB


def test_directories_on_the_way_are_entries(unpack: Callable[..., Extracted], root: str) -> None:
    parts = [file(b"%d/" % number + _DEEP + b"f") for number in range(4)]
    limits = Limits(entries=4_000)
    with pytest.raises(ArchiveError, match="more than 4000 entries, directories on their way counted"):
        validate(tape.stream(*parts), limits=limits)
    with pytest.raises(ArchiveError, match="more than 4000 entries, directories on their way counted"):
        unpack(*parts, limits=limits)
    made = subprocess.run(["find", root, "-mindepth", "1", "-printf", "."], capture_output=True, check=True).stdout
    assert len(made) == 3 * 1011  # what would be too much is not begun


def test_names_are_counted_once() -> None:
    """Those of a directory are not counted for each of its files, nor a name that comes again."""
    parts = [file(b"some/directory/%d" % (number % 100)) for number in range(1000)]
    validate(tape.stream(*parts), limits=Limits(names=len("somedirectory") + 190, entries=1000))
    with pytest.raises(ArchiveError, match=r"names and link targets .* over the 202 bytes that are allowed"):
        validate(tape.stream(*parts), limits=Limits(names=len("somedirectory") + 189))


def test_a_tree_is_removed_in_little_memory(unpack: Callable[..., Extracted]) -> None:
    """Its directories lie below one another, and what is above them is said once."""
    unpack(*(file(b"top/%d/" % number + _DEEP + b"f") for number in range(4)))
    assert _peak(lambda: unpack(file(b".wh.top"))) < 3


@pytest.mark.parametrize("limits", [Limits(entries=10), Limits(names=100)])
def test_pseudo_links_are_counted(unpack: Callable[..., Extracted], limits: Limits) -> None:
    parts = [file(b".wh..wh.plnk/%010d" % number) for number in range(11)]
    with pytest.raises(ArchiveError, match=r"more than 10 entries|over the 100 bytes that are allowed"):
        validate(tape.stream(*parts), limits=limits)
    with pytest.raises(ArchiveError, match=r"more than 10 entries|over the 100 bytes that are allowed"):
        unpack(*parts, limits=limits)
