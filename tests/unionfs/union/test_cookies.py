"""Cookies fit 31 bits, and those of names that share a bucket are as good as others: few buckets make that the rule."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unionfs.inprocess import ROOT, create, union, walk, write
from unionfs.union import cookies as cookies_module
from unionfs.union import listing as listing_module
from unionfs.union import merge as merge_module
from unionfs.union.cookies import BEFORE, LAST, Cookies
from unionfs.union.fs import UnionFs

DOTS = [b".", b".."]


def few_buckets(patch: pytest.MonkeyPatch, bits: int, numbers: int = 1 << 16) -> None:
    """2^`bits` of them, and so many numbers for names that are not the last in theirs."""
    patch.setattr(cookies_module, "_SHIFT", 64 - bits)
    patch.setattr(cookies_module, "_MIDDLE", (1 << 30) + (1 << bits - 1))
    patch.setattr(cookies_module, "_MOST_POINTS", numbers)


def same_hashes(patch: pytest.MonkeyPatch) -> None:
    """In every process, so that what fails fails again."""
    for module in (cookies_module, listing_module, merge_module):
        patch.setattr(module, "hash", _digest, raising=False)


def _digest(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly no name has a bucket of its own."""
    few_buckets(monkeypatch, 3)


def in_order(count: int, word: str = "name") -> list[bytes]:
    return sorted((f"{word}{number}".encode() for number in range(count)), key=hash)


def cookies_of(cookies: Cookies, names: list[bytes]) -> list[int]:
    return cookies.of(names, range(len(names)))


@pytest.mark.usefixtures("crowded")
def test_of_some_of_the_names() -> None:
    """Whether the last of those is the last of its bucket the next one tells."""
    names = in_order(100)
    cookies = Cookies()
    given = cookies_of(cookies, names)
    for start in range(101):
        for stop in range(start, 101):
            assert cookies.of(names, range(start, stop)) == given[start:stop]


def test_a_million_names() -> None:
    """Each has a cookie of its own, in 31 bits, at which exactly the rest is still to come."""
    names = in_order(1_000_000)
    cookies = Cookies()
    given = cookies_of(cookies, names)
    assert min(given) > 2 and max(given) < 1 << 31
    assert len(set(given)) == len(names)
    assert 300 < sum(cookie < 1 << 30 for cookie in given) < 700, "names that share a bucket"
    for at, cookie in enumerate(given):
        assert hash(names[at]) <= cookies.point(cookie)
        assert at + 1 == len(names) or cookies.point(cookie) < hash(names[at + 1])
    assert cookies_of(cookies, names) == given
    assert Cookies().of(names, range(10)) == given[:10]
    assert cookies.of(names, range(500, 900)) == given[500:900]


def test_from_the_ends() -> None:
    cookies = Cookies()
    for cookie in (0, 1, 2, 3, 1000):
        assert cookies.point(cookie) == BEFORE, "all is still to come"
    assert cookies.point((1 << 31) - 1) == LAST, "nothing is"
    assert not cookies_of(cookies, [])


@pytest.mark.usefixtures("crowded")
def test_a_cookie_means_the_same_whatever_comes_and_goes() -> None:
    names = in_order(100)
    cookies = Cookies()
    given = dict(zip(names, cookies_of(cookies, names), strict=True))
    points = {name: cookies.point(cookie) for name, cookie in given.items()}
    pick = random.Random(5)
    for _ in range(50):
        cookies_of(cookies, sorted({*pick.sample(names, 40), *in_order(60, f"new{pick.random()}")}, key=hash))
        assert {name: cookies.point(cookie) for name, cookie in given.items()} == points
    assert all(cookie < 1 << 31 for cookie in given.values())


def test_more_names_in_few_buckets_than_there_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    few_buckets(monkeypatch, 3, numbers=10)
    names = in_order(100)
    cookies = Cookies()
    given = cookies_of(cookies, names)
    assert len(set(given)) == 100
    assert sum(cookie < 1 << 31 for cookie in given) == 18, "ten and the last of each bucket"
    for at, cookie in enumerate(given):
        assert 0 < cookie < 1 << 63
        assert hash(names[at]) <= cookies.point(cookie)
        assert at + 1 == len(names) or cookies.point(cookie) < hash(names[at + 1])


@pytest.mark.needs("root", "trusted-xattr")
@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("most", [7, 1 << 18], ids=["in many windows", "in one"])
def test_a_listing_goes_on_from_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Also of a window that cannot be made smaller, being one bucket."""
    monkeypatch.setattr(listing_module, "_MOST_NAMES", most)
    monkeypatch.setattr(listing_module, "_CHUNK", 16)
    (tmp_path / "low" / "d").mkdir(parents=True)
    for number in range(100):
        (tmp_path / "low" / "d" / f"name{number}").touch()
    with union(tmp_path) as fs:
        directory = walk(fs, "d")
        entries = fs.list(directory, 0, 1000)
        assert len(entries) == 102
        for size in (1, 3):
            for at in random.Random(3).sample(range(102), 102):
                assert fs.list(directory, entries[at][-1], size) == entries[at + 1 : at + 1 + size]
        # What was looked up is forgotten, and the directory with it: the kernel may do that while an NFS client reads.
        fs.forget([(directory, 1)])
        directory = walk(fs, "d")
        assert fs.list(directory, entries[50][-1], 1000) == entries[51:]


class Listed(RuleBasedStateMachine):
    """Readers of one directory, each with the entries that it was given since it began, while others change it.

    Whatever is there from a reader's beginning to its end it is given once; nothing twice, and nothing that had gone
    before it asked. A reader may go back to any cookie that it was given; windows are dropped, and the directory is
    forgotten and looked up again.
    """

    NAMES = st.integers(0, 39).map(lambda number: b"n%d" % number)
    READERS = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        few_buckets(self.patch, 3, numbers=12)
        same_hashes(self.patch)
        self.patch.setattr(listing_module, "_CHUNK", 4)
        self.base = Path(tempfile.mkdtemp())
        self.there: set[bytes] = set()
        self.given: dict[int, list[tuple[bytes, int]]] = {}
        self.stays: dict[int, set[bytes]] = {}

    @initialize(lower=st.sets(NAMES, min_size=10), upper=st.sets(NAMES), most=st.sampled_from([5, 1000]))
    def mount(self, lower: set[bytes], upper: set[bytes], most: int) -> None:
        self.patch.setattr(listing_module, "_MOST_NAMES", most)
        for branch, names in (("low", lower), ("up", upper)):
            (self.base / branch / "d").mkdir(parents=True)
            for name in names:
                (self.base / branch / "d" / os.fsdecode(name)).touch()
        self.there = lower | upper
        self.mounted = union(self.base)
        self.fs: UnionFs = self.mounted.__enter__()
        self.directory = walk(self.fs, "d")

    @rule(reader=READERS)
    def begin(self, reader: int) -> None:
        self.given[reader] = [(b"", 0)]
        self.stays[reader] = set(self.there)

    @precondition(lambda self: self.given)
    @rule(reader=READERS, most=st.integers(1, 12), plus=st.booleans())
    def go_on(self, reader: int, most: int, plus: bool) -> None:
        if reader not in self.given:
            return
        given = self.given[reader]
        cookie = given[-1][1]
        if plus:
            found = self.fs.list_plus(self.directory, cookie, most)
            self.fs.forget((attr.number, 1) for name, attr, _ in found if name not in DOTS)
            entries = [(name, following) for name, _, following in found]
        else:
            entries = [(name, following) for name, _, _, following in self.fs.list(self.directory, cookie, most)]
        for name, following in entries:
            assert name in self.there or name in DOTS, f"{name!r} had gone"
            assert name not in dict(given), f"{name!r} a second time"
            assert 0 < following < 1 << 63
            given.append((name, following))
        if not entries:
            missing = self.stays[reader].difference(dict(given))
            assert not missing, f"{missing} was there all the time"

    @precondition(lambda self: self.given)
    @rule(reader=READERS, back=st.integers(0, 30))
    def go_back(self, reader: int, back: int) -> None:
        if reader in self.given:
            given = self.given[reader]
            del given[max(2, len(given) - back) :]

    @rule(name=NAMES)
    def make(self, name: bytes) -> None:
        if name not in self.there:
            create(self.fs, self.directory, name)
            self.there.add(name)

    @rule(name=NAMES)
    def remove(self, name: bytes) -> None:
        if name in self.there:
            self.fs.unlink(self.directory, name)
            self._gone(name)

    @rule(name=NAMES, new=NAMES)
    def rename(self, name: bytes, new: bytes) -> None:
        if name in self.there and name != new:
            self.fs.rename(self.directory, name, self.directory, new)
            self._gone(name)
            self.there.add(new)

    @rule(name=NAMES)
    def copy_up(self, name: bytes) -> None:
        if name in self.there:
            write(self.fs, walk(self.fs, f"d/{os.fsdecode(name)}"), b"x")

    @rule()
    def copy_up_whole(self) -> None:
        self.fs.rename(ROOT, b"d", ROOT, b"e")
        self.fs.rename(ROOT, b"e", ROOT, b"d")

    @rule()
    def drop_windows(self) -> None:
        self.fs._listings._windows.clear()
        self.fs._listings._weight = 0

    @rule()
    def forget(self) -> None:
        self.fs.forget([(self.directory, 1)])
        self.directory = walk(self.fs, "d")

    def _gone(self, name: bytes) -> None:
        self.there.discard(name)
        for stays in self.stays.values():
            stays.discard(name)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "fs"):
            self.fs.check_invariants()

    def teardown(self) -> None:
        if hasattr(self, "mounted"):
            self.mounted.__exit__(None, None, None)
        shutil.rmtree(self.base)
        self.patch.undo()


TestListed = pytest.mark.needs("root", "trusted-xattr")(Listed.TestCase)
TestListed.settings = settings(
    max_examples=60, stateful_step_count=60, derandomize=True, deadline=None, database=None,
    phases=[Phase.generate],  # to make a failure small would take minutes
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
