"""A node is one file for as long as the kernel knows it, whatever the kernel forgets and whoever changes its names."""

from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.posix.case import fails
from tests.trees import HardLink, Tree, build
from tests.unionfs.inprocess import ROOT, content, create, known, listing, remove_deep, snapshot, union, walk, write
from unionfs.union import copydata
from unionfs.union.fs import UnionFs

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

TWO_NAMES: Tree = {"d1": {"f": "F"}, "d2": {"f": HardLink("../d1/f")}}


@pytest.fixture(params=["up", "low"])
def linked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnionFs]:
    """A union with d1/f and d2/f, one file, in the upper or in the lower branch."""
    build(str(tmp_path / request.param), TWO_NAMES)
    with union(tmp_path) as fs:
        yield fs


def forget_directory_of_second_name(fs: UnionFs) -> int:
    """Look up d1/f and d2/f and let the kernel drop d2/f and then d2, as under memory pressure; d1/f stays."""
    file = walk(fs, "d1/f")
    assert walk(fs, "d2/f") == file
    directory = walk(fs, "d2")
    fs.forget([(directory, 2), (file, 1)])
    return file


def test_link_counts_of_directories(tmp_path: Path) -> None:
    """Their own where they merge nothing: of lower ones, upper ones, opaque ones; the union's own are not counted."""
    lower: Tree = {"low": {"a": {}, "b": {}}, "both": {"a": {}}, "opaque": {"a": {}, "b": {}}}
    build(str(tmp_path / "low"), lower)
    build(str(tmp_path / "up"), {"both": {"c": {}}, "new": {"a": {}}, "opaque": {"c": {}, ".wh..wh..opq": ""}})
    if os.stat(tmp_path / "low/low").st_nlink == 1:
        pytest.skip("the temporary directory's file system does not count")
    counts = {"": 1, "low": 4, "both": 1, "both/a": 2, "both/c": 2, "new": 3, "opaque": 3}
    with union(tmp_path) as fs:
        assert {path: fs.getattr(walk(fs, path)).nlink for path in counts} == counts
        fs.mkdir(walk(fs, "low"), b"c", 0o755, 0, 0)
        assert fs.getattr(walk(fs, "low")).nlink == 1, "it merges two from now on"
    with union(tmp_path, upper=None) as fs:
        assert fs.getattr(ROOT).nlink == 2 + len(lower)
    os.mkdir(tmp_path / "up/.wh..wh.plnk")
    with union(tmp_path, "up", upper=None) as fs:
        assert fs.getattr(ROOT).nlink == 2 + len(os.listdir(tmp_path / "up")) - 1


def test_a_name_goes_whose_directory_was_forgotten(linked: UnionFs) -> None:
    file = forget_directory_of_second_name(linked)
    linked.unlink(walk(linked, "d2"), b"f")
    assert linked.getattr(file).nlink == 1
    assert content(linked, file) == b"F"
    linked.check_invariants()


def test_a_directory_moves_that_was_forgotten(linked: UnionFs) -> None:
    """The file's second name goes along: it is neither looked for in a new directory of the old name, nor does what is
    done below the new name end there."""
    fs = linked
    file = forget_directory_of_second_name(fs)
    moved = walk(fs, "d2")
    fs.rename(ROOT, b"d2", ROOT, b"d3")
    fs.forget([(moved, 1)])
    fresh = fs.mkdir(ROOT, b"d2", 0o755, 0, 0).ino
    create(fs, fresh, b"f", b"OTHER")
    assert content(fs, file) == b"F"
    fs.setattr(file, mode=0o600)
    create(fs, walk(fs, "d3"), b"new")
    assert listing(fs, walk(fs, "d3")) == [b"f", b"new"]
    assert listing(fs, fresh) == [b"f"]
    seen = snapshot(fs)
    assert (seen["d1/f"].mode, seen["d3/f"].mode, seen["d2/f"].mode) == ("0o100600", "0o100600", "0o100644")
    fs.check_invariants()


def test_a_directory_that_only_a_listing_knew(linked: UnionFs) -> None:
    """A listing gives the kernel an entry with its number; the directory's other references may all be gone."""
    fs = linked
    directory = walk(fs, "d2")
    entries = {name: attr.number for name, attr, _ in fs.list_plus(directory, 0, 100)}
    assert entries.keys() == {b".", b"..", b"f"}
    file = entries[b"f"]
    fs.forget([(directory, 1)])
    assert content(fs, file) == b"F"
    fs.rename(ROOT, b"d2", ROOT, b"d3")
    assert content(fs, file) == b"F"
    fs.unlink(walk(fs, "d1"), b"f")
    assert fs.getattr(file).nlink == 1
    fs.check_invariants()


def test_the_table_is_empty_when_all_is_forgotten(linked: UnionFs, tmp_path: Path) -> None:
    """From the top, so that each directory is held by the one below alone, deeper than Python's stack."""
    fs = linked
    file = walk(fs, "d1/f")
    walk(fs, "d2/f")
    write(fs, file, b"G")
    lookups = [(walk(fs, "d1"), 2), (walk(fs, "d2"), 2)]
    try:
        deep = ROOT
        for _ in range(1500):
            deep = fs.mkdir(deep, b"deep", 0o755, 0, 0).ino
            lookups.append((deep, 1))
        fs.check_invariants()
        fs.forget(lookups[:-1])
        assert known(fs) == 1 + 3 + 1500
        fs.forget(lookups[-1:])
        assert known(fs) == 1 + 3
        fs.forget([(file, 2)])
        assert known(fs) == 1
    finally:
        remove_deep(tmp_path / "up" / "deep")


def test_names_that_one_file_has_in_two_branches_are_two_files(tmp_path: Path) -> None:
    """Layers made with `cp -al` share inodes; a change through the mount is to one layer's file."""
    build(str(tmp_path), {"top": {"x": "X", "both": "B"}, "bottom": {"y": HardLink("../top/x")}})
    with union(tmp_path, "top", "bottom") as fs:
        first, second = walk(fs, "x"), walk(fs, "y")
        assert first != second
        assert listing(fs) == [b"both", b"x", b"y"]
        write(fs, first, b"changed")
        assert [content(fs, file) for file in (first, second)] == [b"changed", b"X"]
        fs.unlink(ROOT, b"x")
        assert content(fs, walk(fs, "y")) == b"X"
        fs.check_invariants()
    with union(tmp_path, "top", "bottom") as fs:
        assert {path: seen.content for path, seen in snapshot(fs).items()} == {"both": b"B", "y": b"X"}
    assert (tmp_path / "bottom" / "y").read_text() == "X"


def test_a_file_keeps_the_number_it_got_in_a_collision(tmp_path: Path) -> None:
    """upper/a says that it is a copy of low/b, which is there too: layers' files get moved by hand. The copy-up of b
    must not make it a second file, or what is done to one is done to a later file of the other's name."""
    build(str(tmp_path / "low"), {"b": "B"})
    with union(tmp_path) as fs:
        write(fs, walk(fs, "b"), b"old")
    os.rename(tmp_path / "up" / "b", tmp_path / "up" / "a")
    with union(tmp_path) as fs:
        other, file = walk(fs, "a"), walk(fs, "b")
        assert other != file
        handle = fs.open(file, os.O_RDWR)
        assert walk(fs, "b") == file
        fs.unlink(ROOT, b"b")
        assert fs.getattr(file).nlink == 0
        create(fs, ROOT, b"b", b"new")
        fs.setattr(file, size=0)
        assert content(fs, walk(fs, "b")) == b"new"
        fs.release(handle)
        fs.check_invariants()


@contextmanager
def copying(fs: UnionFs, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> Iterator[None]:
    """Run `action` in a thread; the block runs when it is about to copy data, which goes on after the block."""
    reached, go_on = threading.Event(), threading.Event()
    real = copydata.copy

    def wait(*arguments: Any) -> None:
        reached.set()
        assert go_on.wait(30)
        real(*arguments)

    monkeypatch.setattr(copydata, "copy", wait)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert reached.wait(30)
        monkeypatch.setattr(copydata, "copy", real)
        yield
    finally:
        go_on.set()
        thread.join(30)
    assert not errors, errors


def test_unlinked_and_made_again_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(str(tmp_path / "low"), {"f": "old"})
    with union(tmp_path) as fs:
        file = walk(fs, "f")
        handle = fs.open(file, os.O_RDONLY)
        with copying(fs, monkeypatch, lambda: write(fs, file, b"W")):
            fs.unlink(ROOT, b"f")
            create(fs, ROOT, b"f", b"new")
        assert fs.read(handle, 0, 10) == b"Wld"
        fs.release(handle)
        assert fs.getattr(file).nlink == 0
        assert content(fs, walk(fs, "f")) == b"new"
        fs.check_invariants()
    with union(tmp_path) as fs:
        assert content(fs, walk(fs, "f")) == b"new"


def test_forgotten_and_changed_while_its_directory_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename of a lower directory copies its files without the lock; what others do in it then moves along."""
    build(str(tmp_path / "low"), {"d": {"f": "old"}})
    with union(tmp_path) as fs:
        directory, file = walk(fs, "d"), walk(fs, "d/f")
        with copying(fs, monkeypatch, lambda: fs.rename(ROOT, b"d", ROOT, b"e")):
            fs.forget([(file, 1), (directory, 2)])
            assert walk(fs, "d/f") == file
            fs.unlink(walk(fs, "d"), b"f")
            create(fs, walk(fs, "d"), b"g", b"new")
        assert listing(fs) == [b"e"]
        assert listing(fs, walk(fs, "e")) == [b"g"]
        fs.check_invariants()
        before = snapshot(fs)
    with union(tmp_path) as fs:
        assert snapshot(fs) == before


def test_a_directory_removed_and_made_again_is_another(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"d": {}})
    with union(tmp_path) as fs:
        old = walk(fs, "d")
        fs.rmdir(ROOT, b"d")
        new = fs.mkdir(ROOT, b"d", 0o755, 0, 0).ino
        assert old != new
        with fails(2):
            create(fs, old, b"f")
        assert listing(fs, old) == []
        create(fs, new, b"f")
        fs.setattr(old, mode=0o700)
        assert fs.getattr(new).st.st_mode & 0o777 == 0o755
        fs.check_invariants()


def test_a_fresh_number_is_the_same_file(tmp_path: Path) -> None:
    """With the same st_ino. The old one stays good, and lookups are taken back by either."""
    build(str(tmp_path / "low"), {"f": "F", "g": "G"})
    with union(tmp_path) as fs:
        file, other = walk(fs, "f"), walk(fs, "g")
        assert fs.current(file) == file
        fresh = fs.renumber(file)
        assert fresh not in (file, other, fs.renumber(other))
        assert fs.renumber(file) == fs.renumber(fresh) == fs.current(file) == fs.current(fresh) == fresh
        attr = fs.lookup(ROOT, b"f")
        assert attr is not None
        assert (attr.ino, attr.number) == (file, fresh)
        assert fs.getattr(file) == fs.getattr(fresh) == attr
        assert {name: ino for name, ino, *_ in fs.list(ROOT, 0, 9)[2:]} == {b"f": file, b"g": other}
        write(fs, fresh, b"new")
        assert content(fs, file) == b"new"
        assert known(fs) == 3
        fs.check_invariants()
        fs.forget([(file, 1), (fresh, 1), (fs.current(other), 1)])
        assert known(fs) == 1
        for number in (file, fresh):
            with fails(errno.ESTALE):
                fs.getattr(number)
        attr = fs.lookup(ROOT, b"f")
        assert attr is not None
        assert attr.number == attr.ino == file


def test_a_directory_goes_by_its_fresh_number(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"d": {"f": "F"}})
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        fresh = fs.renumber(directory)
        create(fs, fresh, b"new")
        assert listing(fs, fresh) == listing(fs, directory) == [b"f", b"new"]
        assert [ino for _, ino, *_ in fs.list(fresh, 0, 1)] == [directory]
        fs.rename(fresh, b"f", ROOT, b"f")
        assert walk(fs, "d") == directory
        fs.check_invariants()


def test_nodes_are_small_and_give_their_memory_back(tmp_path: Path) -> None:
    count = 10_000
    (tmp_path / "low" / "d").mkdir(parents=True)
    for number in range(count):
        os.mknod(tmp_path / "low" / "d" / f"file-{number:05}")
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        fs.lookup(directory, b"file-00000")
        tracemalloc.start()
        try:
            for number in range(1, count):
                fs.lookup(directory, b"file-%05d" % number)
            assert tracemalloc.get_traced_memory()[0] < 300 * count
            fs.forget([(node.number, node.lookups) for node in fs._stack.nodes if not node.is_directory])
            assert known(fs) == 2
            assert tracemalloc.get_traced_memory()[0] < 30 * count
        finally:
            tracemalloc.stop()
