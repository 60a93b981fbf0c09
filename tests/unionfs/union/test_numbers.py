"""Inode numbers where branches are on several file systems: small where they can be, never one for two files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trees import HardLink, Symlink, Tree, build
from tests.unionfs.inprocess import ROOT, create, differences, snapshot, union, walk, write
from unionfs.linux import mounts
from unionfs.union import numbers as numbers_module
from unionfs.union.identity import Identity
from unionfs.union.numbers import Numbering, Xino

XINO: tuple[Xino, ...] = ("auto", "on", "off")
LOWER: Tree = {"d": {"f": "x", "g": HardLink("f")}, "h": "y", "l": Symlink("h"), "other": "z"}


def test_of_one_file_system_they_are_the_inodes() -> None:
    for inode in (1, (1 << 32) - 1, (1 << 48) - 1):
        assert Numbering([7], "auto").of(7).of(inode) == inode
        assert Numbering([7], "on").of(7).of(inode) == inode
    assert Numbering([7], "off").of(7).of((1 << 31) - 1) == (1 << 31) - 1


@pytest.mark.parametrize("count", [2, 3, 4, 5, 100])
@pytest.mark.parametrize("xino", XINO)
def test_of_several_no_two_are_the_same(count: int, xino: Xino) -> None:
    numbering = Numbering(range(count), xino)
    edges = {1, *(1 << bits for bits in range(64)), *((1 << bits) - 1 for bits in range(1, 65))}
    if xino == "off":
        edges = {inode for inode in edges if inode >> 25 == 0}  # 100 file systems and the digests leave 25 bits
    numbers = [numbering.of(fsid).of(inode) for fsid in range(count) for inode in edges]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 1 << 64 for number in numbers)
    assert xino != "off" or max(numbers) < 1 << 32
    assert numbering.of(0).of(3) == 3, "the lowest has its own"


def test_automatic_numbers_are_of_32_bits_where_they_fit() -> None:
    for count, bits in ((2, 31), (3, 30), (4, 30), (5, 29)):
        numbering = Numbering(range(count), "auto")
        for fsid in range(count):
            assert numbering.of(fsid).of((1 << bits) - 1) < 1 << 32
            assert numbering.of(fsid).of(1 << bits) >= 1 << 48


def test_a_further_file_system_changes_no_number_that_still_fits() -> None:
    few, more = Numbering([7, 8], "auto"), Numbering([7, 8, 9, 10], "auto")
    for inode in (1, 1 << 20, (1 << 30) - 1):
        assert few.of(7).of(inode) == more.of(7).of(inode)
        assert few.of(8).of(inode) == more.of(8).of(inode)


def test_digests() -> None:
    """Of a file system that no branch is on: of 64 bits, or of 32 and apart from numbers that are none."""
    for xino in ("auto", "on"):
        assert Numbering([7], xino).of(9).of(5) >= 1 << 63
    numbering = Numbering([7, 8], "off")
    digests = {numbering.of(9).of(inode) for inode in range(1000)} | {numbering.of(7).of(1 << 40)}
    placed = {numbering.of(fsid).of(inode) for fsid in (7, 8) for inode in (1, 1 << 29)}
    assert max(digests) < 1 << 32
    assert len(digests) > 990
    assert not {number >> 30 for number in digests} & {number >> 30 for number in placed}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Path]:
    """`low` and `up`, and `other` on a file system of its own, with files of the same inode numbers as in `up`."""
    (tmp_path / "other").mkdir()
    mounts.mount("other", str(tmp_path / "other"), "tmpfs")
    try:
        build(str(tmp_path / "other" / "low"), LOWER)
        build(str(tmp_path / "low"), {str(number): {"sub": ""} for number in range(20)})
        yield tmp_path
    finally:
        mounts.umount2(str(tmp_path / "other"))


@pytest.mark.needs("root", "trusted-xattr", "tmpfs")
@pytest.mark.parametrize("lower", [("low", "other/low"), ("other/low", "low")], ids=["other below", "other between"])
@pytest.mark.parametrize("xino", XINO)
def test_they_stay(two: Path, xino: Xino, lower: tuple[str, str]) -> None:
    """Over copy-up and the next mount; and a listing says what a status says."""
    with union(two, *lower, xino=xino) as fs:
        before = snapshot(fs)
        numbers = [seen.ino for path, seen in before.items() if path != "d/g"]
        assert len(set(numbers)) == len(numbers)
        assert (max(numbers) < 1 << 32) == (xino != "on")
        for path in ("d/f", "h", "3/sub"):
            write(fs, walk(fs, path), b"new")
        fs.setattr(walk(fs, "l"), uid=3)
        for path in ("", "d", "3"):
            directory = walk(fs, path)
            listed = {name: ino for name, ino, *_ in fs.list(directory, 0, 100)[2:]}
            assert listed == {name: attr.ino for name, attr, _ in fs.list_plus(directory, 0, 100)[2:]}
            prefix = f"{path}/" if path else ""
            assert {f"{prefix}{os.fsdecode(name)}": ino for name, ino in listed.items()}.items() <= {
                place: seen.ino for place, seen in before.items()
            }.items()
        create(fs, ROOT, b"new")
        after = snapshot(fs)
        assert all(after[path].ino == seen.ino for path, seen in before.items())
    with union(two, *lower, xino=xino) as fs:
        assert not differences(after, snapshot(fs))


@pytest.mark.needs("root", "trusted-xattr", "tmpfs")
def test_digests_that_are_the_same(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a mount inside a branch: the second that is looked up goes by another number, of 32 bits too."""
    monkeypatch.setattr(numbers_module, "_digest", lambda _fsid, inode: inode % 2)
    (two / "low" / "inside").mkdir()
    mounts.mount("inside", str(two / "low" / "inside"), "tmpfs")
    try:
        files: Tree = {f"f{number}": "" for number in range(10)}
        build(str(two / "low" / "inside"), files)
        with union(two, "low", "other/low", xino="off") as fs:
            directory = walk(fs, "inside")
            numbers = [walk(fs, f"inside/{name}") for name in files]
            assert len({directory, *numbers}) == 11
            assert max(numbers) < 1 << 32
            listed = {os.fsdecode(name): ino for name, ino, *_ in fs.list(directory, 0, 100)[2:]}
            assert listed == dict(zip(files, numbers, strict=True))
            fs.check_invariants()
    finally:
        mounts.umount2(str(two / "low" / "inside"))


@pytest.mark.needs("root", "trusted-xattr")
def test_a_number_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers made with `cp -al` share inodes: the second file has another number of 32 bits, that no known file has."""
    build(str(tmp_path), {"top": {"t": {"x": "X", "z": ""}}, "bottom": {"b": {"y": HardLink("../../top/t/x")}}})
    given = iter([os.stat(tmp_path / "top" / "t" / "z").st_ino, (1 << 32) - 1])
    with union(tmp_path, "top", "bottom") as fs:
        known = walk(fs, "t/z"), walk(fs, "t/x")
        monkeypatch.setattr(fs._stack.identity, "spare_number", lambda: next(given))
        number = walk(fs, "b/y")
        assert number == (1 << 32) - 1
        assert {known[0], known[1]} == {walk(fs, "t/z"), walk(fs, "t/x")}
        assert stat.S_ISREG(fs.getattr(number).st.st_mode)
        assert fs.renumber(number) >= 1 << 62, "which no file can have"
        assert fs.getattr(number).ino == number
        fs.check_invariants()


def test_spare_numbers_are_of_32_bits_for_a_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.union.identity._MOST_SPARE", 3)
    identity = Identity([])
    given = [identity.spare_number() for _ in range(5)]
    assert given[:3] == [(1 << 32) - 1, (1 << 32) - 2, (1 << 32) - 3]
    assert min(given[3:]) > 1 << 62
    assert identity.fresh_number() not in given
