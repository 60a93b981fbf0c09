"""What one archive may have us do: counted in system calls, names looked at and bytes, so that no clock is asked."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.archive.errors import ArchiveError
from drivers.archive.extract import Extracted, extract
from drivers.archive.layered import Onto
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.validate import validate
from tests.drivers.archive import tape
from tests.drivers.archive.tape import hard_link
from unionfs.linux import files

pytestmark = pytest.mark.needs("root", "tmpfs-xattr")

Layer = Callable[..., Extracted]


@pytest.fixture(params=["aufs", "overlay"])
def layer(memory: Path, request: pytest.FixtureRequest) -> Layer:
    """`layer(part, …)` extracts an archive into the empty directory `own`, upon the directory `base`."""
    os.mkdir(memory / "base")

    def run(*parts: bytes, limits: Limits = DEFAULT) -> Extracted:
        os.mkdir(memory / "own")
        own, base = (os.open(memory / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("own", "base"))
        try:
            return extract(tape.stream(*parts), Onto(own, [base], request.param), limits=limits)
        finally:
            os.close(own)
            os.close(base)

    return run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many openat2(2) there have been."""
    count = 0
    real = files.openat2

    def counted(dirfd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
        nonlocal count
        count += 1
        return real(dirfd, path, flags, mode=mode, resolve=resolve)

    monkeypatch.setattr(files, "openat2", counted)
    yield lambda: count


def validated(*parts: bytes, limits: Limits = DEFAULT) -> None:
    validate(tape.stream(*parts), limits=limits)


def _deep(top: Path, depth: int) -> Path:
    path = top.joinpath(*["d"] * depth)
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_a_directory_with_many_names_of_one_file_is_made_once(
    memory: Path, layer: Layer, opened: Callable[[], int]
) -> None:
    deep = _deep(memory / "base", 100)
    (deep / "f").write_text("x")
    for number in range(200):
        os.link(deep / "f", deep / f"{number}")
    os.link(deep / "f", deep.parent / "g")
    layer(hard_link(b"z", b"d/" * 100 + b"f"))
    assert os.stat(memory / "own" / "z").st_nlink == 203
    assert len(os.listdir(memory / "own" / deep.relative_to(memory / "base"))) == 201
    assert opened() < 100 * 12


def test_the_names_of_linked_files_are_remembered_without_their_directories(memory: Path, layer: Layer) -> None:
    deep = _deep(memory / "base", 200)
    for number in range(2000):
        (deep / f"{number}").touch()
        os.link(deep / f"{number}", deep / f"{number}-")
    gc.collect()
    tracemalloc.start()
    try:
        layer(hard_link(b"z", b"d/" * 200 + b"7"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert os.stat(memory / "own" / "z").st_nlink == 3
    assert peak < 4000 * 500


def test_a_directory_behind_a_link_is_found_once(memory: Path, layer: Layer, opened: Callable[[], int]) -> None:
    """Its files come one after another, and each says the link."""
    _deep(memory / "base", 100)
    files_ = [tape.file(b"l/%d" % number) for number in range(300)]
    layer(tape.symlink(b"l", b"d/" * 100), *files_)
    assert len(os.listdir(_deep(memory / "own", 100))) == 300
    assert opened() < 100 * 20


def test_own_directories_on_the_way_are_not_opened_one_by_one(
    memory: Path, layer: Layer, opened: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = 0
    real = os.stat

    def counted(path: object, **options: object) -> os.stat_result:
        nonlocal names
        names += 1
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", counted)
    layer(tape.directory(b"d/" * 200), *(tape.directory(b"d/" * 199 + b"%d" % number) for number in range(100)))
    assert names < 200 * 3 + 100 * 5


@pytest.mark.parametrize("parts", [
    [tape.file(b"d/" * 50 + b"f"), *(tape.file(b"d/" * (number % 2 + 48) + b"%d" % number) for number in range(40))],
    [tape.symlink(b"l", b"d/" * 20), *(tape.file(b"l/%d/f" % number) for number in range(40))],
    [tape.symlink(b"%d" % number, b"%d" % (number + 1)) for number in range(38)]
    + [tape.file(b"0/" * (number % 2 + 1) + b"f") for number in range(20)],
], ids=["depth", "link", "links"])  # fmt: skip
def test_looks_at_names_are_counted(unpack: Layer, parts: list[bytes]) -> None:
    for run in (unpack, validated):
        with pytest.raises(ArchiveError, match=r"^[^ ]+ \(byte \d+\): .* more than 600 looks at the names on the way"):
            run(*parts, limits=Limits(looks=600))
    unpack(*parts, limits=Limits(looks=100_000))
    validate(tape.stream(*parts), limits=Limits(looks=100_000))


@pytest.mark.parametrize("mark", [[], [tape.file(b".wh.gone")]], ids=["unmarked", "marked"])
def test_looks_at_what_is_below_are_counted(memory: Path, layer: Layer, mark: list[bytes]) -> None:
    """An entry that goes nowhere new is as dear as what has to be looked at to know it."""
    (memory / "base" / "gone").touch()
    _deep(memory / "base", 50)
    parts = [tape.file(b"d/" * depth + b".wh.%d" % depth) for depth in range(1, 50)]
    with pytest.raises(ArchiveError, match="more than 1000 looks at the names on the way"):
        layer(*mark, *parts, limits=Limits(looks=1000))


def test_links_lead_no_deeper_than_names(unpack: Layer) -> None:
    parts = [tape.symlink(b"l", b"n/" * 8), tape.file(b"l/" + b"m/" * 3 + b"f")]
    for run in (unpack, validated):
        with pytest.raises(ArchiveError, match="through symbolic links to more than 10 directories in one another"):
            run(*parts, limits=Limits(depth=10))
    unpack(*parts, limits=Limits(depth=11))


def test_what_is_copied_from_below_is_counted(memory: Path, layer: Layer) -> None:
    """One header has a file copied, and a second one has it go and be copied again."""
    (memory / "base" / "d").mkdir()
    (memory / "base" / "d/large").write_bytes(b"x" * 50_000)
    (memory / "base" / "d/2").write_bytes(b"x" * 40_000)
    parts = [hard_link(b"z", b"d/large"), tape.file(b"f", b"x" * 5_000), hard_link(b"y", b"d/2")]
    with pytest.raises(ArchiveError, match=r"^y \(byte \d+\): .* over the 90000 bytes that are allowed in all"):
        layer(*parts, limits=Limits(total=90_000))
    assert not (memory / "own" / "d/2").exists()
    os.rename(memory / "own", memory / "first")
    layer(*parts, limits=Limits(total=100_000))


def test_holes_are_not_copied_nor_counted(memory: Path, layer: Layer) -> None:
    with open(memory / "base" / "sparse", "wb") as file:
        file.truncate(1 << 30)
    layer(hard_link(b"z", b"sparse"), limits=Limits(total=20_000))
    assert os.stat(memory / "own" / "z").st_blocks == 0


def test_names_of_a_file_that_are_hidden_stay_so(memory: Path, layer: Layer) -> None:
    """By what the archive has brought or removed, in directories of the layer's own and in others."""
    base = memory / "base"
    for name in ("kept", "gone", "new", "over/in"):
        (base / name).mkdir(parents=True)
    (base / "f").write_text("x")
    for name in ("kept/a", "kept/b", "kept/c", "gone/a", "new/a", "over/in/a"):
        os.link(base / "f", base / name)
    layer(
        tape.file(b"kept/a", b"mine"), tape.file(b"kept/.wh.b"), tape.file(b".wh.gone"), tape.file(b"new/.wh..wh..opq"),
        tape.file(b"over", b"file"), hard_link(b"z", b"f"),
    )  # fmt: skip
    own = memory / "own"
    assert os.stat(own / "z").st_nlink == 3
    assert os.path.samefile(own / "z", own / "kept/c")
    assert (own / "kept/a").read_text() == "mine" and not (own / "new/a").exists()
