"""What one archive may have us do: counted in system calls, names looked at and bytes, so that no clock is asked."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.archive.extract import Extracted, extract
from drivers.archive.layered import Onto
from drivers.archive.limits import DEFAULT, Limits
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


def _deep(top: Path, depth: int) -> Path:
    path = top.joinpath(*["d"] * depth)
    path.mkdir(parents=True)
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
