"""That a stack of layers is the same tree on every driver and peer: otherwise their figures would not compare."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.subjects import Driver, Stack, Subject

LAYERS = 3


def fill(number: int, directory: str) -> None:
    """Layer `number` of LAYERS: a file of its own, and its number in the file that all have."""
    os.makedirs(os.path.join(directory, "dir"), exist_ok=True)
    for name in (f"dir/only-{number}", "dir/all"):
        with open(os.path.join(directory, name), "w") as file:
            file.write(str(number))


def read(*path: str) -> str:
    with open(os.path.join(*path)) as file:
        return file.read()


def check(subject: Subject) -> None:
    fills = [lambda directory, number=number: fill(number, directory) for number in range(1, LAYERS + 1)]
    with subject.stack(fills) as stack:
        check_depths(stack)
        check_writable(stack, subject)
    assert os.listdir(subject.work) == []


def check_depths(stack: Stack) -> None:
    for depth in range(1, LAYERS + 1):
        with stack.writable(depth) as tree:
            assert tree.ready > 0
            assert sorted(os.listdir(tree.path)) == ["dir"]
            assert sorted(os.listdir(f"{tree.path}/dir")) == ["all", *(f"only-{n}" for n in range(1, depth + 1))]
            assert read(tree.path, "dir/all") == str(depth)


def check_writable(stack: Stack, subject: Subject) -> None:
    with stack.writable(LAYERS) as tree:
        with open(f"{tree.path}/dir/new", "w") as file:
            file.write("new")
        if subject.copies_up:
            with open(f"{tree.path}/dir/only-1", "a") as file:
                file.write(" changed")
        tree.remount()
        assert read(tree.path, "dir/new") == "new"
        if subject.copies_up:
            assert read(tree.path, "dir/only-1") == "1 changed"
    with stack.writable(LAYERS) as tree:
        assert not os.path.exists(f"{tree.path}/dir/new")
        assert read(tree.path, "dir/only-1") == "1"


def test_driver(driver: Driver) -> None:
    check(driver)


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("name", peers.COMMANDS)
def test_peer(name: str, tmp_path: Path) -> None:
    if name not in peers.installed():
        pytest.skip(f"{name} is not installed")
    check(peers.Peer(name, str(tmp_path)))


@pytest.mark.needs("fuse", "program:fuse-overlayfs")
def test_a_peer_that_does_not_start_says_so(tmp_path: Path) -> None:
    server = peers.Server(["fuse-overlayfs", "-f", "-o", "lowerdir=/nonexistent", str(tmp_path)], str(tmp_path))
    with pytest.raises(OSError, match="fuse-overlayfs did not mount"):
        server.start()
    server.stop()
