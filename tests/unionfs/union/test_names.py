"""What a union remembers of the names in its branches: nothing of large directories, and never anything untrue."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.unionfs.inprocess import ROOT, create, listing, remembered_names, union, walk
from unionfs.union import directories

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]


def test_names_are_remembered_when_that_pays(tmp_path: Path) -> None:
    """By who missed many, for a number of them; what is found costs the same in any case."""
    (tmp_path / "low" / "d").mkdir(parents=True)
    for number in range(1000):
        os.mknod(tmp_path / "low" / "d" / f"{number}")
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        for number in range(1000):
            assert fs.lookup(directory, b"%d" % number) is not None
        assert remembered_names(fs) == 0
        for number in range(1000, 1063):
            assert fs.lookup(directory, b"%d" % number) is None
        assert remembered_names(fs) == 0
        assert fs.lookup(directory, b"1063") is None
        assert remembered_names(fs) == 1000
        assert fs.lookup(directory, b"1064") is None
        assert fs.lookup(directory, b"999") is not None


def test_more_names_than_the_budget(tmp_path: Path) -> None:
    for directory in range(20):
        (tmp_path / "low" / str(directory)).mkdir(parents=True)
        for number in range(20):
            os.mknod(tmp_path / "low" / str(directory) / str(number))
    with union(tmp_path) as fs:
        fs._stack.directories._most_names = 100
        for directory in range(20):
            ino = walk(fs, str(directory))
            for number in range(20, 60):
                assert fs.lookup(ino, b"%d" % number) is None
            assert remembered_names(fs) <= 100


def test_a_directory_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_LARGEST_SET", 128)
    with union(tmp_path) as fs:
        remembered = []
        for number in range(300):
            create(fs, ROOT, b"%d" % number)
            remembered.append(remembered_names(fs))
        assert max(remembered) > 100
        assert remembered[-1] == 0
        for number in range(310):
            assert (fs.lookup(ROOT, b"%d" % number) is not None) == (number < 300)


@pytest.mark.parametrize("largest", [4, 1 << 16], ids=["hardly any remembered", "all remembered"])
def test_they_are_true_whatever_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Names come and go in a merged directory; what is found and what is listed is what should be there."""
    monkeypatch.setattr(directories, "_LARGEST_SET", largest)
    (tmp_path / "low").mkdir()
    names = [b"%d" % number for number in range(30)]
    there = {*names[::2]}
    for name in there:
        os.mknod(os.path.join(os.fsencode(tmp_path), b"low", name))
    pick = random.Random(3)
    with union(tmp_path) as fs:
        for _ in range(400):
            name, other = pick.sample(names, 2)
            if name not in there:
                create(fs, ROOT, name)
                there.add(name)
            elif pick.randrange(2):
                fs.unlink(ROOT, name)
                there.remove(name)
            else:
                fs.rename(ROOT, name, ROOT, other)
                there.remove(name)
                there.add(other)
            for name in names:
                assert (fs.lookup(ROOT, name) is not None) == (name in there)
        assert set(listing(fs)) == there
        fs.check_invariants()
    with union(tmp_path) as fs:
        assert set(listing(fs)) == there
