from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.archive.extract import Extracted, extract
from drivers.archive.layered import Onto
from drivers.archive.limits import DEFAULT, Limits
from drivers.disk.trees import delete_path
from tests.drivers.archive import tape
from tests.trees import File, Symlink, build


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    """An empty directory to extract into, in the same directory as `victim`."""
    path = tmp_path / "root"
    path.mkdir()
    yield str(path)
    delete_path(str(path))  # it may be deeper than pytest's own recursion goes


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[str]:
    """A directory beside the root that must be exactly the same after the test: inodes, times, content."""
    path = build(str(tmp_path / "victim"), {
        "secret": File("only the host reads this", mode=0o600), "dir": {"file": "x"}, "link": Symlink(target="secret"),
    })  # fmt: skip
    beside = sorted(os.listdir(tmp_path))
    before = tape.snapshot(path)
    yield path
    assert tape.snapshot(path) == before
    assert set(os.listdir(tmp_path)) <= {*beside, "root"}


@pytest.fixture(params=["plain", "aufs", "overlay"])
def unpack(
    root: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[..., Extracted]:
    """`unpack(part, …)` extracts an archive of the parts into `root`: a plain tree, or a directory of differences upon
    one that has nothing in it, so that it comes to the same."""

    def run(*parts: bytes, limits: Limits = DEFAULT) -> Extracted:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        nothing = os.open(tmp_path_factory.mktemp("nothing"), os.O_PATH | os.O_DIRECTORY)
        try:
            target = fd if request.param == "plain" else Onto(fd, [nothing], request.param)
            return extract(tape.stream(*parts), target, limits=limits)
        finally:
            os.close(fd)
            os.close(nothing)

    return run
