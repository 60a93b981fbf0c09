"""Depths, counts and lengths at the edge: of Python's stack, of PATH_MAX, of descriptors, of names."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trees import build
from tests.unionfs.inprocess import (
    ROOT,
    content,
    create,
    keep_few_directories,
    listing,
    remove_deep,
    snapshot,
    union,
    walk,
    write,
)

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]


@pytest.fixture
def descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test's parameter is how many there are; a login shell gives 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(request.param, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def build_deep(path: Path, name: str, levels: int, leaf: str) -> None:
    """`name`/`name`/… below `path`, with the file `leaf` in the deepest."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open(leaf, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


@pytest.mark.parametrize(
    ("name", "levels"), [("d", 1100), ("d" * 250, 40)], ids=["deeper than Python's stack", "longer than PATH_MAX"]
)
def test_a_deep_tree(tmp_path: Path, name: str, levels: int) -> None:
    """It is renamed, written to and removed, with few of its directories open at a time."""
    build_deep(tmp_path / "low", name, levels, "leaf")
    try:
        with union(tmp_path) as fs:
            keep_few_directories(fs, 8)
            path = [ROOT]
            for _ in range(levels):
                found = fs.lookup(path[-1], name.encode())
                assert found is not None
                path.append(found.ino)
            fs.rename(ROOT, name.encode(), ROOT, b"moved")
            leaf = fs.lookup(path[-1], b"leaf")
            assert leaf is not None
            write(fs, leaf.ino, b"new")
            assert content(fs, leaf.ino) == b"new"
            assert listing(fs) == [b"moved"]
            fs.unlink(path[-1], b"leaf")
            for parent in reversed(path[1:-1]):
                fs.rmdir(parent, name.encode())
            fs.rmdir(ROOT, b"moved")
            assert listing(fs) == []
        with union(tmp_path) as fs:
            assert listing(fs) == []
    finally:
        remove_deep(tmp_path / "low" / name, tmp_path / "up" / "moved", tmp_path / "up" / name)


@pytest.mark.parametrize("descriptors", [4096], indirect=True)
def test_a_deep_tree_left_in_the_work_area(tmp_path: Path, descriptors: None) -> None:
    """By a server that was killed; the next mount deletes it."""
    (tmp_path / "up").mkdir()
    build_deep(tmp_path / "up" / ".wh..wh.orph", "d", 1100, "leaf")
    try:
        with union(tmp_path) as fs:
            assert listing(fs) == []
            assert os.listdir(tmp_path / "up") == []
    finally:
        remove_deep(tmp_path / "up" / ".wh..wh.orph")


@pytest.mark.parametrize("descriptors", [1024], indirect=True)
def test_more_directories_than_descriptors(tmp_path: Path, descriptors: None) -> None:
    """4000 empty ones in a tree that is renamed, each with a part in both branches then."""
    for number in range(2000):
        os.makedirs(tmp_path / "low" / "d" / str(number) / "e")
    with union(tmp_path) as fs:
        fs.rename(ROOT, b"d", ROOT, b"moved")
        assert len(listing(fs, walk(fs, "moved"))) == 2000
        fs.check_invariants()
    with union(tmp_path) as fs:
        assert len(snapshot(fs)) == 4001


@pytest.mark.parametrize("descriptors", [1024], indirect=True)
def test_more_branches_than_a_cache_of_directories_holds(tmp_path: Path, descriptors: None) -> None:
    """250 that all have the same directories: a lookup needs those of a directory and of its parent."""
    names = [f"low{number}" for number in range(250)]
    for name in names:
        build(str(tmp_path / name), {"d": {"0": {name: ""}, "1": {name: ""}, "2": {name: ""}}})
    with union(tmp_path, *names) as fs:
        for number in range(3):
            assert len(listing(fs, walk(fs, f"d/{number}"))) == 250
        create(fs, walk(fs, "d/1"), b"new")
        fs.unlink(walk(fs, "d/2"), b"low7")
        assert len(listing(fs, walk(fs, "d/2"))) == 249
        fs.check_invariants()
