"""What operations cost in a union of many branches: in proportion to what is there, and to the branches once, not to
the product of the two. Counted are calls, of functions and of the system: no clock tells.
"""

from __future__ import annotations

import collections
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.trees import Tree, build
from tests.unionfs.inprocess import ROOT, create, listing, union, walk
from unionfs.union.fs import UnionFs

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

FEW, MANY = 4, 40
ENTRIES = 320


def calls(operation: Callable[[], object]) -> collections.Counter[str]:
    """The calls that `operation` takes, by their module: "posix" are those of the system."""
    counts: collections.Counter[str] = collections.Counter()

    def note(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            counts[getattr(called, "__module__", None) or "builtins"] += 1
        elif event == "call":
            counts[frame.f_globals["__name__"]] += 1

    sys.setprofile(note)
    try:
        operation()
    finally:
        sys.setprofile(None)
    return counts


def everything(operation: Callable[[], object]) -> int:
    return calls(operation).total()


def of_system(operation: Callable[[], object]) -> int:
    return calls(operation)["posix"]


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """FEW branches and MANY. `d` has ENTRIES files altogether; `e` has a file in each branch, `m` directories in each.
    `hidden` has ENTRIES files, all whited out in the middle."""
    base = tmp_path_factory.mktemp("branches")
    found = {}
    for count in (FEW, MANY):
        found[count] = [str(base / f"{at}-of-{count}") for at in range(count)]
        for at, path in enumerate(found[count]):
            tree: Tree = {
                "d": dict.fromkeys(map(str, range(at, ENTRIES, count)), ""),
                "e": {"all": "", f"own{at}": ""},
                "m": {"n": {f"own{at}": ""}, **{f"gone{number}": {} for number in range(3)}},
                "hidden": dict.fromkeys(map(str, range(at, ENTRIES, count)), "") if at > count // 2 else {},
            }
            if at == count // 2:
                tree = {**tree, "hidden": {f".wh.{number}": "" for number in range(ENTRIES)}}
            build(path, tree)
    return found


class Measure:
    """What the operation that `prepare` returns takes with few branches, and with many, counted by `count`."""

    def __init__(self, lower: dict[int, list[str]], base: Path) -> None:
        self._lower = lower
        self._base = base

    def __call__(
        self, prepare: Callable[[UnionFs], Callable[[], object]], count: Callable[[Callable[[], object]], int]
    ) -> tuple[int, int]:
        costs = []
        for names in self._lower.values():
            upper = tempfile.mkdtemp(dir=self._base)
            with union(self._base, *names, upper=upper) as fs:
                costs.append(count(prepare(fs)))
                fs.check_invariants()
        return costs[0], costs[1]


@pytest.fixture
def measure(lower: dict[int, list[str]], tmp_path: Path) -> Measure:
    return Measure(lower, tmp_path)


def whole(fs: UnionFs, ino: int) -> set[bytes]:
    """Listed with attributes, nothing stays counted."""
    found: set[bytes] = set()
    cookie = 0
    while entries := fs.list_plus(ino, cookie, 100):
        fs.forget((attr.number, 1) for name, attr, _ in entries if name not in (b".", b".."))
        found.update(name for name, *_ in entries)
        cookie = entries[-1][-1]
    return found


@pytest.mark.parametrize("list_", [whole, listing])
def test_a_listing(measure: Measure, list_: Callable[[UnionFs, int], set[bytes] | list[bytes]]) -> None:
    def prepare(fs: UnionFs) -> Callable[[], object]:
        directory = walk(fs, "d")
        assert len(list_(fs, directory)) in (ENTRIES, ENTRIES + 2)
        create(fs, directory, b"new")  # what is known is not any more
        return lambda: list_(fs, directory)

    few, many = measure(prepare, everything)
    assert many - few < 60 * (MANY - FEW), "each branch is read once"


def test_a_first_listing_after_the_mount(measure: Measure) -> None:
    few, many = measure(lambda fs: lambda: whole(fs, walk(fs, "d")), of_system)
    assert many - few < 30 * (MANY - FEW)
    assert few < 2 * ENTRIES


def test_an_entry_that_all_branches_have(measure: Measure) -> None:
    """It is looked at in the top one alone, a directory in each."""
    few, many = measure(lambda fs: lambda: whole(fs, walk(fs, "e")), everything)
    assert many < few * MANY / FEW
    few, many = measure(lambda fs: lambda: whole(fs, walk(fs, "m")), everything)
    assert many < few * MANY / FEW


@pytest.mark.parametrize("make", ["mkdir", "create", "symlink"])
def test_a_new_name(measure: Measure, make: str) -> None:
    """Once its directory is known the branches are not asked again."""

    def prepare(fs: UnionFs) -> Callable[[], object]:
        directory = walk(fs, "m/n")

        def new(name: bytes) -> None:
            assert fs.lookup(directory, name) is None
            if make == "mkdir":
                fs.mkdir(directory, name, 0o755, 0, 0)
            elif make == "create":
                create(fs, directory, name)
            else:
                fs.symlink(directory, name, b"target", 0, 0)

        for number in range(4):
            new(b"%d" % number)
        return lambda: new(b"new")

    few, many = measure(prepare, of_system)
    assert few == many
    few, many = measure(prepare, everything)
    assert many - few < 8 * (MANY - FEW)


def test_the_first_new_name(measure: Measure) -> None:
    """Each branch's directory is opened, and asked for the name and its whiteout. That the kernel has just looked it
    up is not forgotten."""

    def prepare(fs: UnionFs) -> Callable[[], object]:
        directory = walk(fs, "m/n")
        assert fs.lookup(directory, b"new") is None
        return lambda: fs.mkdir(directory, b"new", 0o755, 0, 0)

    few, many = measure(prepare, of_system)
    assert few == many


def test_who_made_a_name_that_was_missing_is_asked(tmp_path: Path) -> None:
    with union(tmp_path) as fs:
        assert fs.lookup(ROOT, b"new") is None
        directory = fs.mkdir(ROOT, b"d", 0o755, 0, 0).ino
        fs.rename(ROOT, b"d", ROOT, b"new")
        with pytest.raises(FileExistsError):
            fs.mkdir(ROOT, b"new", 0o755, 0, 0)
        assert fs.lookup(directory, b"new") is None
        fs.rmdir(ROOT, b"new")
        with pytest.raises(FileNotFoundError):
            fs.mkdir(directory, b"new", 0o755, 0, 0)
        other = create(fs, ROOT, b"other")
        assert fs.lookup(ROOT, b"file") is None
        fs.link(other, ROOT, b"file")
        with pytest.raises(FileExistsError):
            create(fs, ROOT, b"file")


@pytest.mark.parametrize("what", ["rmdir", "unlink", "rename", "rename a directory", "look up"])
def test_other_changes(measure: Measure, what: str) -> None:
    def prepare(fs: UnionFs) -> Callable[[], object]:
        entries, merged = walk(fs, "d"), walk(fs, "m")
        create(fs, entries, b"new")
        whole(fs, entries)
        return {
            "rmdir": lambda: fs.rmdir(merged, b"gone1"),
            "unlink": lambda: fs.unlink(entries, b"7"),
            "rename": lambda: fs.rename(entries, b"new", entries, b"newer"),
            "rename a directory": lambda: fs.rename(ROOT, b"d", ROOT, b"moved"),
            "look up": lambda: fs.lookup(merged, b"n"),
        }[what]

    few, many = measure(prepare, everything)
    assert many < few * MANY / FEW
    if what == "rename a directory":
        assert many - few < 200 * (MANY - FEW), "which copies all that is in it, however it is spread"


def test_an_emptied_directory(measure: Measure) -> None:
    """That all is gone is seen in each branch once, whichever hides it."""

    def prepare(fs: UnionFs) -> Callable[[], object]:
        assert listing(fs, walk(fs, "hidden")) == []
        return lambda: fs.rmdir(ROOT, b"hidden")

    few, many = measure(prepare, everything)
    assert many - few < 100 * (MANY - FEW)
