"""Listings by cookies alone: each entry once whatever happens meanwhile, from any cookie, in bounded memory."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.trees import HardLink, Special, Symlink, Tree, build
from tests.unionfs.inprocess import ROOT, create, known, listing, union, walk, write
from unionfs.linux import mounts
from unionfs.union import listing as listing_module
from unionfs.union.fs import UnionFs
from unionfs.union.listing import Entry

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

DOTS = [b".", b".."]
TREE: Tree = {"f": "F", "g": HardLink("f"), "l": Symlink("f"), "p": Special(), "d": {"x": "x"}, "s": {"y": "y"}}


def names(fs: UnionFs, ino: int = ROOT, cookie: int = 0, batch: int = 7) -> list[bytes]:
    """By list_plus, which must agree with list; nothing stays counted."""
    found = []
    while entries := fs.list_plus(ino, cookie, batch):
        assert len(entries) <= batch
        for name, attr, _ in entries:
            found.append(name)
            if name not in DOTS:
                fs.forget([(attr.number, 1)])
        plain = fs.list(ino, cookie, batch)
        assert [(name, ino, mode) for name, ino, mode, _ in plain] == [
            (name, attr.ino, stat.S_IFMT(attr.st.st_mode)) for name, attr, _ in entries
        ]
        assert [following for *_, following in plain] == [following for *_, following in entries]
        cookie = entries[-1][-1]
    assert fs.list(ino, cookie, batch) == []
    return found


def files(directory: Path, count: int, prefix: str = "file") -> set[bytes]:
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        os.mknod(directory / f"{prefix}{number}")
    return {f"{prefix}{number}".encode() for number in range(count)}


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of a few hundred names is a large one."""
    monkeypatch.setattr(listing_module, "_MOST_NAMES", 40)
    monkeypatch.setattr(listing_module, "_CHUNK", 16)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_dots_come_first_and_all_the_others_once(tmp_path: Path, batch: int) -> None:
    expected = files(tmp_path / "low" / "d", 20)
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        seen = names(fs, directory, batch=batch)
        assert seen[:2] == DOTS
        assert sorted(seen[2:]) == sorted(expected)
        dots = fs.list(directory, 0, 2)
        assert [ino for _, ino, _, _ in dots] == [directory, ROOT]
        assert [ino for _, ino, _, _ in fs.list(ROOT, 0, 2)] == [ROOT, ROOT]
        assert known(fs) == 2
        fs.check_invariants()


def test_every_type_with_the_number_of_stat(tmp_path: Path) -> None:
    """In both branches, merged, copied up, with hard links: what a listing says is what a lookup says."""
    build(str(tmp_path / "low"), {**TREE, "gone": "", "merged": TREE})
    build(str(tmp_path / "up"), {"merged": {"up": "u", "d": {}}, "own": TREE})
    for _ in range(2):
        with union(tmp_path) as fs:
            for path in ("", "merged", "own", "own/d", "s"):
                directory = walk(fs, path)
                found = {}
                for name, ino, mode, _ in fs.list(directory, 0, 100)[2:]:
                    attr = fs.lookup(directory, name)
                    assert attr is not None
                    found[name] = (attr.ino, stat.S_IFMT(attr.st.st_mode))
                    assert found[name] == (ino, mode), name
                assert names(fs, directory)[2:] == list(found)
            # And for the second turn, copies in a branch that is not empty when it is mounted.
            write(fs, walk(fs, "merged/f"), b"new")
            write(fs, walk(fs, "s/y"), b"new")
            fs.setattr(walk(fs, "l"), uid=3)
            fs.rename(ROOT, b"s", ROOT, b"t")
            fs.rename(ROOT, b"t", ROOT, b"s")


def test_whiteouts_and_opaque_directories(tmp_path: Path, small_windows: None) -> None:
    low = files(tmp_path / "low" / "d", 200)
    middle = files(tmp_path / "middle" / "d", 100, "middle")
    for number in range(50):
        (tmp_path / "middle" / "d" / f".wh.file{number}").touch()
    up = files(tmp_path / "up" / "d", 30, "up")
    (tmp_path / "up" / "d" / ".wh.middle7").touch()
    os.mknod(tmp_path / "up" / "d" / "file77", stat.S_IFCHR, 0)
    os.mknod(tmp_path / "up" / "d" / "middle8")  # over a lower one
    hidden = {b"file%d" % number for number in range(50)} | {b"file77", b"middle7"}
    with union(tmp_path, "middle", "low") as fs:
        seen = names(fs, walk(fs, "d"))
        assert len(seen) == len(set(seen))
        assert set(seen[2:]) == (low | middle | up) - hidden
        fs.check_invariants()
    (tmp_path / "middle" / "d" / ".wh..wh..opq").touch()
    with union(tmp_path, "middle", "low") as fs:
        assert set(names(fs, walk(fs, "d"))[2:]) == (middle | up) - hidden


def test_from_any_cookie_it_goes_on(tmp_path: Path, small_windows: None) -> None:
    """Whatever was read before, and by somebody else since."""
    files(tmp_path / "low" / "d", 150)
    files(tmp_path / "up" / "d", 50, "up")
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        entries = fs.list(directory, 0, 1000)
        order = list(range(len(entries)))
        random.Random(7).shuffle(order)
        for index in order:
            rest = fs.list(directory, entries[index][-1], 5)
            assert rest == entries[index + 1 : index + 6]
        assert len({cookie for *_, cookie in entries}) == len(entries)
        assert all(0 < cookie < 1 << 31 for *_, cookie in entries)


@pytest.mark.parametrize("many", [False, True], ids=["in one window", "in many"])
def test_what_stays_is_seen_once(tmp_path: Path, request: pytest.FixtureRequest, many: bool) -> None:
    """While others appear, vanish, are copied up and renamed between any two requests; the directory itself gets a part
    in the writable branch with the first change and is copied up whole with the last."""
    if many:
        request.getfixturevalue("small_windows")
    low = files(tmp_path / "low" / "d", 300)
    pick = random.Random(11)
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        stays = set(pick.sample(sorted(low), 150))
        goes = sorted(low - stays)
        pick.shuffle(goes)
        seen: list[bytes] = []
        cookie = made = 0
        while entries := fs.list_plus(directory, cookie, 5):
            for name, attr, _ in entries:
                seen.append(name)
                if name not in DOTS:
                    fs.forget([(attr.number, 1)])
            cookie = entries[-1][-1]
            create(fs, directory, b"new%d" % made)
            made += 1
            fs.unlink(directory, goes.pop())
            fs.rename(directory, goes.pop(), directory, b"renamed%d" % made)
            write(fs, walk(fs, f"d/{pick.choice(sorted(stays)).decode()}"), b"copied")
            if made == 20:
                fs.rename(ROOT, b"d", ROOT, b"e")
                fs.rename(ROOT, b"e", ROOT, b"d")
        assert len(seen) == len(set(seen))
        assert stays <= set(seen)
        assert set(names(fs, directory)[2:]) == set(listing(fs, directory))
        fs.check_invariants()


@pytest.mark.parametrize("moment", range(1, 12))
def test_copied_up_whole_while_its_names_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_windows: None, moment: int
) -> None:
    """The names of a large directory are read without the lock: what was in the lower branch is in the upper then."""
    there = files(tmp_path / "low" / "d", 60) | files(tmp_path / "up" / "d", 40, "up")
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        unlocked = fs._stack.unlocked
        times = 0

        @contextlib.contextmanager
        def meanwhile() -> Iterator[None]:
            nonlocal times
            times += 1
            with unlocked():
                if times == moment:
                    monkeypatch.setattr(fs._stack, "unlocked", unlocked)
                    fs.rename(ROOT, b"d", ROOT, b"e")
                yield

        monkeypatch.setattr(fs._stack, "unlocked", meanwhile)
        assert set(names(fs, directory)[2:]) == there
        assert listing(fs) == [b"e"]
        fs.check_invariants()


@pytest.mark.parametrize("first", [2, 4], ids=["before it wants names", "with names of its own"])
def test_who_begins_later_sees_what_came_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_windows: None, first: int
) -> None:
    """Though what somebody else reads has not got it, who began earlier and is done later."""
    there = files(tmp_path / "low" / "d", 30)
    (tmp_path / "up" / "d").mkdir(parents=True)
    new = max((b"new%d" % number for number in range(1000)), key=hash)  # the last of a listing
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        unlocked = fs._stack.unlocked
        begun: list[Entry] = []

        @contextlib.contextmanager
        def meanwhile() -> Iterator[None]:
            monkeypatch.setattr(fs._stack, "unlocked", unlocked)
            with unlocked():
                create(fs, directory, new)
                begun.extend(fs.list(directory, 0, first))
                yield

        monkeypatch.setattr(fs._stack, "unlocked", meanwhile)
        fs.list(directory, 0, 3)
        assert len(begun) == first
        rest = names(fs, directory, begun[-1][-1])
        assert sorted([*(name for name, *_ in begun[2:]), *rest]) == sorted({*there, new})
        assert not fs._listings._reading


def test_a_fresh_listing_is_fresh(tmp_path: Path) -> None:
    files(tmp_path / "low" / "d", 3)
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        for turn in range(3):
            assert len(fs.list(directory, 0, 3)) == 3, "and not the rest"
            fs.unlink(directory, b"file%d" % turn)
            create(fs, directory, b"new%d" % turn)
            there = {b"file%d" % number for number in range(turn + 1, 3)} | {b"new%d" % n for n in range(turn + 1)}
            assert {name for name, *_ in fs.list(directory, 0, 9)[2:]} == there


def test_a_number_that_another_file_has(tmp_path: Path) -> None:
    """Layers made with `cp -al` share inodes: the second of the two has a number that no directory entry tells."""
    build(str(tmp_path), {"top": {"t": {"x": "X"}}, "bottom": {"b": {"y": HardLink("../../top/t/x"), "z": ""}}})
    with union(tmp_path, "top", "bottom") as fs:
        first = walk(fs, "t/x")
        numbers = {name: ino for name, ino, *_ in fs.list(walk(fs, "b"), 0, 9)}
        assert numbers[b"y"] != first
        second = walk(fs, "b/y")
        numbers = {name: ino for name, ino, *_ in fs.list(walk(fs, "b"), 0, 9)}
        assert numbers[b"y"] == second
        assert numbers[b"z"] == walk(fs, "b/z")


def test_removed_and_other_things(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"d": {}, "f": ""})
    with union(tmp_path) as fs:
        directory, file = walk(fs, "d"), walk(fs, "f")
        fs.rmdir(ROOT, b"d")
        assert names(fs, directory) == DOTS
        for call in (fs.list, fs.list_plus):
            with fails(errno.ENOTDIR):
                call(file, 0, 10)
            with fails(errno.ESTALE):
                call(12345, 0, 10)


def test_an_error_waits_until_what_was_counted_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "low" / "d", 10)
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        bad = fs.list(directory, 0, 100)[6][0]
        real = os.stat

        def failing(path: object, **named: object) -> os.stat_result:
            if path == bad:
                raise OSError(errno.EIO, "bad sector")
            return real(path, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "stat", failing)
        entries = fs.list_plus(directory, 0, 100)
        assert len(entries) == 6
        with fails(errno.EIO):
            fs.list_plus(directory, entries[-1][-1], 100)
        monkeypatch.setattr(os, "stat", real)
        rest = fs.list_plus(directory, entries[-1][-1], 100)
        assert len(entries) + len(rest) == 12
        fs.forget((attr.number, 1) for name, attr, _ in [*entries, *rest] if name not in DOTS)
        assert known(fs) == 2
        fs.check_invariants()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """200,000 names in d of the lower branch."""
    base = tmp_path_factory.mktemp("large")
    mounts.mount("large", str(base), "tmpfs")
    try:
        files(base / "low" / "d", 200_000)
        yield base
    finally:
        mounts.umount2(str(base))


def resident_at_most() -> int:
    """Bytes, the most since the last call."""
    with open("/proc/self/status") as status:
        most = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # proc(5)
    return most


@pytest.mark.needs("tmpfs")
def test_a_large_directory_in_little_memory(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names alone would be 15 MB."""
    monkeypatch.setattr(listing_module, "_MOST_NAMES", 1 << 14)
    with union(large, upper=None) as fs:
        directory = walk(fs, "d")
        seen = bytearray(200_000)
        cookie = 0
        resident_at_most()
        before = resident_at_most()
        while entries := fs.list_plus(directory, cookie, 1000):
            for name, attr, _ in entries:
                if name not in DOTS:
                    seen[int(name[4:])] += 1
                    fs.forget([(attr.number, 1)])
            cookie = entries[-1][-1]
        assert resident_at_most() - before < 6 << 20
        assert seen == b"\1" * 200_000
        assert known(fs) == 2


@pytest.mark.needs("tmpfs")
def test_others_go_on_while_a_large_directory_is_read(large: Path) -> None:
    with union(large, upper=None) as fs:
        directory = walk(fs, "d")
        served = 0
        done = threading.Event()

        def read() -> None:
            fs.list(directory, 0, 10)
            done.set()

        reader = threading.Thread(target=read)
        reader.start()
        while not done.is_set():
            if fs.lookup(ROOT, b"d") is not None:
                fs.forget([(directory, 1)])
                served += 1
        reader.join()
        assert served > 5
        fs.check_invariants()


@pytest.mark.needs("loop", "program:mkfs.ext2")
def test_types_are_of_the_directory_that_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where entries have no type they are looked at, in a directory that the cache may have closed meanwhile, and its
    descriptor be another's."""
    monkeypatch.setattr(listing_module, "_CHUNK", 16)
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext2", "-q", "-O", "^filetype", image], check=True)
    (tmp_path / "low").mkdir()
    subprocess.run(["mount", "-o", "loop", image, tmp_path / "low"], check=True)
    try:
        build(str(tmp_path / "low"), {
            "files": {f"n{number}": "x" for number in range(64)},
            "links": {f"n{number}": Symlink("x") for number in range(64)},
        })  # fmt: skip
        with union(tmp_path) as fs:
            directory = walk(fs, "files")
            number = fs._stack.directories.get(fs._stack.nodes.get(directory), fs._stack.branches[1]).fd
            other = os.open(tmp_path / "low" / "links", os.O_RDONLY)
            unlocked = fs._stack.unlocked

            @contextlib.contextmanager
            def crowded() -> Iterator[None]:
                with unlocked():
                    if fs.give_back_descriptors():
                        os.dup2(other, number)
                    yield

            monkeypatch.setattr(fs._stack, "unlocked", crowded)
            kinds = {name: kind for name, _, kind, _ in fs.list(directory, 0, 100) if name not in DOTS}
            os.close(number)
            os.close(other)
            assert len(kinds) == 64
            assert set(kinds.values()) == {stat.S_IFREG}
    finally:
        subprocess.run(["umount", tmp_path / "low"], check=True)


def test_nobody_is_told_of_a_change_with_the_lock_held(tmp_path: Path) -> None:
    """The kernel may wait for a request that needs it before it takes the news."""
    build(str(tmp_path / "low"), {"d": {"e": {f"f{number}": "x" for number in range(3)}}})
    with union(tmp_path) as fs:
        told = []

        def forget_attributes(number: int) -> None:
            assert not fs._stack.lock.locked()
            told.append(number)

        fs.tell_changes_to(forget_attributes)
        file = walk(fs, "d/e/f1")
        fs.setattr(file, mode=0o600)
        assert {walk(fs, "d"), walk(fs, "d/e")} <= set(told)
        told.clear()
        fs.rename(walk(fs, "d"), b"e", ROOT, b"moved", 0)
        assert walk(fs, "moved/f2") in told
        assert len(told) == len(set(told))
