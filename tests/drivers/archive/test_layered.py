"""What is extracted into a directory of differences is what the same archive makes of a plain tree, case by case."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from drivers.api import Mount
from drivers.archive import target
from drivers.archive.errors import ArchiveError
from drivers.archive.extract import extract
from drivers.diff import apply, changes
from drivers.errors import InUse
from drivers.mounts import tree
from drivers.mounts.tree import Tree, private
from tests import trees
from tests.capabilities import missing
from tests.drivers.archive import tape
from tests.drivers.archive.pairs import assert_same_outcome, copied
from tests.drivers.archive.tape import directory, file, hard_link, symlink
from tests.drivers.random_trees import ACL, DRIVERS, opened
from tests.mounting import mounted
from tests.trees import ACL_XATTRS as ACLS
from tests.trees import Dir, File, HardLink, Special, Symlink

OLD = 1_000_000_000 * 10**9
DEEP = Dir({"x": File("old", uid=9, mtime_ns=OLD), "y": "y"}, mode=0o711, uid=5, gid=6, xattrs={"user.note": b"1"})


class Case(NamedTuple):
    """The tree of the lowest layer, what the next one changes in it, and the archive; `at` prefixes a name."""

    below: trees.Tree
    archive: Callable[[Callable[[bytes], bytes]], list[bytes]]
    change: Callable[[str], object] = lambda path: None


def in_turn(*changes: Callable[[str], object]) -> Callable[[str], None]:
    def change(path: str) -> None:
        for one in changes:
            one(path)

    return change


def remove_attributes(path: str) -> None:
    for name in os.listxattr(path):
        os.removexattr(path, name)


CASES = {
    "a file in a directory that no entry names": Case({"d": {"e": DEEP}}, lambda at: [file(at(b"d/e/new"))]),
    "in one of two layers": Case(
        {"d": DEEP}, lambda at: [file(at(b"d/new"))],
        in_turn(
            lambda path: os.chmod(f"{path}/d", 0o700), lambda path: os.removexattr(f"{path}/d", "user.note")
        ),
    ),
    "in one that was made anew": Case(
        {"d": DEEP}, lambda at: [file(at(b"d/new"))],
        in_turn(lambda path: shutil.rmtree(f"{path}/d"), lambda path: trees.build(path, {"d": {"z": "z"}})),
    ),
    "in one that was removed": Case(
        {"d": DEEP}, lambda at: [file(at(b"d/new"))], lambda path: shutil.rmtree(f"{path}/d")
    ),
    "a directory over a directory": Case({"d": DEEP}, lambda at: [directory(at(b"d"), mode=0o1777)]),
    "a directory over a file over a directory": Case(
        {"d": DEEP}, lambda at: [directory(at(b"d")), file(at(b"d/z"))],
        in_turn(lambda path: shutil.rmtree(f"{path}/d"), lambda path: Path(path, "d").write_text("file")),
    ),
    "a directory over a link": Case({"d": DEEP, "l": Symlink(target="d")}, lambda at: [directory(at(b"l"))]),
    "a file over a directory": Case({"d": DEEP}, lambda at: [file(at(b"d"), b"file")]),
    "a file and then a directory": Case({"d": DEEP}, lambda at: [file(at(b"d")), directory(at(b"d"))]),
    "a file over what it made room in": Case({"d": DEEP}, lambda at: [file(at(b"d/z")), file(at(b"d"))]),
    "a whiteout": Case({"d": DEEP}, lambda at: [file(at(b"d/.wh.x"))]),
    "a whiteout of a directory": Case({"d": {"e": DEEP}}, lambda at: [file(at(b"d/.wh.e"))]),
    "a whiteout of nothing": Case({"d": DEEP}, lambda at: [file(at(b"d/.wh.z")), file(at(b"d/.wh.x"))],
                                  lambda path: os.unlink(f"{path}/d/x")),
    "a whiteout, and what comes in its place": Case(
        {"d": {"e": DEEP, "f": "f"}}, lambda at: [
            file(at(b"d/.wh.e")), directory(at(b"d/e")), file(at(b"d/e/z")), file(at(b"d/.wh.f")), file(at(b"d/f")),
        ],
    ),
    "a whiteout, and what comes below it": Case(
        {"d": {"e": DEEP}}, lambda at: [file(at(b"d/.wh.e")), file(at(b"d/e/z"))]
    ),
    "a whiteout of what the archive leads through": Case(
        {"d": {"e": DEEP}, "z": "z"}, lambda at: [file(at(b"d/e/z")), file(at(b"d/e/.wh.x")), file(at(b".wh.d"))]
    ),
    "a whiteout of what the archive brought": Case({"d": DEEP}, lambda at: [file(at(b"d/x"), b"new"),
                                                                          file(at(b"d/.wh.x"))]),
    "an opaque directory": Case(
        {"d": {"e": DEEP, "f": "f"}}, lambda at: [file(at(b"d/e/z")), file(at(b"d/.wh..wh..opq"))]
    ),
    "one that nothing else is in": Case({"d": DEEP}, lambda at: [file(at(b"d/.wh..wh..opq"))]),
    "below a link": Case({"d": DEEP, "l": Symlink(target="d")}, lambda at: [file(at(b"l/new")), file(at(b"l/.wh.x"))]),
    "below a link to what is missing": Case({"l": Symlink(target="m/n")}, lambda at: [file(at(b"l/new"))]),
    "below an absolute link": Case(
        {"d": DEEP, "l": Symlink(target="/below an absolute link/d")},
        lambda at: [file(at(b"l/new")), file(at(b"l/.wh.x"))],
    ),
    "below one to what is missing": Case(
        {"l": Symlink(target="/below one to what is missing/d/e")}, lambda at: [file(at(b"l/new"))]
    ),
    "below a link that climbs": Case(
        {"d": DEEP, "l": Symlink(target="../../../below a link that climbs/d")}, lambda at: [file(at(b"l/new"))]
    ),
    "below links in both layers": Case(
        {"d": {"e": DEEP}, "l": Symlink(target="k/e")}, lambda at: [file(at(b"l/new")), directory(at(b"l/x/y/"))][:1],
        lambda path: os.symlink("d", f"{path}/k"),
    ),
    "below a link of the archive's": Case({"d": DEEP}, lambda at: [symlink(at(b"l"), b"d"), file(at(b"l/new"))]),
    "a hard link": Case({"d": DEEP}, lambda at: [hard_link(at(b"z"), at(b"d/x"))]),
    "a hard link, and its target's directory goes": Case(
        {"d": DEEP}, lambda at: [hard_link(at(b"z"), at(b"d/x")), file(at(b".wh.d"))]
    ),
    "a hard link, and its target goes": Case(
        {"d": DEEP}, lambda at: [hard_link(at(b"z"), at(b"d/x")), file(at(b"d/.wh.x"))]
    ),
    "a hard link to a file of several names": Case(
        {"a": File("a", mtime_ns=OLD), "d": {"b": HardLink("../a"), "e": {"c": HardLink("../b")}}, "f": HardLink("a")},
        lambda at: [file(at(b".wh.f")), file(at(b"d/.wh.e")), hard_link(at(b"z"), at(b"d/b"))],
    ),
    "a hard link to a link and to a fifo": Case(
        {"l": Symlink(target="no", uid=3, mtime_ns=OLD), "f": Special(mode=0o622, mtime_ns=OLD)},
        lambda at: [hard_link(at(b"m"), at(b"l")), hard_link(at(b"g"), at(b"f"))],
    ),
    "default ACLs": Case(
        {"d": Dir({"e": {"x": "x"}, "f": File("f", mode=0o640, mtime_ns=OLD)}, xattrs={ACLS[1]: ACL})},
        lambda at: [
            file(at(b"d/new")), directory(at(b"d/newer")), file(at(b"d/e/new")), hard_link(at(b"d/g"), at(b"d/f")),
            file(at(b"d/a/b/c")),
        ],
        lambda path: remove_attributes(f"{path}/d/e"),
    ),
}  # fmt: skip


@pytest.fixture(params=["overlay2", "fuse-aufs"])
def name(request: pytest.FixtureRequest) -> str:
    if reason := missing(DRIVERS[request.param]):
        pytest.skip(reason)
    return str(request.param)


def _below(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name


@pytest.mark.needs("root", "tmpfs-xattr")
def test_every_case(name: str, memory: Path) -> None:
    """All at once, each in a directory of its own: what is slow is to look at the trees."""
    parts = [part for case in CASES for part in CASES[case].archive(partial(_below, case.encode()))]

    def change(path: str) -> None:
        for case in CASES:
            CASES[case].change(f"{path}/{case}")

    with copied(name, memory, [lambda path: trees.build(path, {k: v.below for k, v in CASES.items()}), change]) as pair:
        assert_same_outcome(*pair, parts)


@pytest.mark.needs("root", "tmpfs-xattr")
def test_directories_have_the_times_that_a_mount_gives_them(name: str, memory: Path) -> None:
    """Those into which something is copied from below keep theirs; those that the archive makes something in do not."""

    def old(path: str) -> None:
        trees.build(path, {
            "a": {"b": {"f": "f", "l": Symlink(target="f")}, "kept": {"x": "x"}}, "c": {"d": {"e": {"g": "g"}}},
            "h": {"1": "x", "i": {"2": HardLink("../1")}, "j": {"3": HardLink("../1")}}, "gone": {"k": {"y": "y"}},
        })  # fmt: skip
        for number, (directory_, _, _) in enumerate(os.walk(path)):
            os.utime(directory_, ns=(OLD, OLD + number))

    parts = [
        hard_link(b"new/f", b"a/b/f"), hard_link(b"new/l", b"a/b/l"), file(b"c/d/e/new"), hard_link(b"new/1", b"h/1"),
        file(b"gone/k/.wh.y"), hard_link(b"a/b/f2", b"a/kept/x"), directory(b"new", mtime=5),
    ]  # fmt: skip
    with opened(name, memory / "layers") as driver:
        with mounted(driver.prepare("one")) as path:
            old(path)
        driver.commit("base", "one")
        found = {}
        for key in ("unpacked", "mounted"):
            driver.prepare(key, "base")
            if key == "unpacked":
                apply(driver, key, tape.stream(*parts))
            else:
                with private(driver.mounts(key)) as root:
                    extract(tape.stream(*parts), root)
            with mounted(driver.mounts(key)) as path:
                times = {where.removeprefix(path): os.stat(where).st_mtime_ns for where, _, _ in os.walk(path)}
            found[key] = {where: time_ns if time_ns < OLD + 10**9 else "now" for where, time_ns in times.items()}
            driver.remove(key)
    assert found["unpacked"] == found["mounted"]
    assert found["unpacked"]["/h/i"] != "now" == found["unpacked"]["/a/b"]


@pytest.mark.needs("root", "tmpfs-xattr")
def test_an_opaque_root(name: str, memory: Path) -> None:
    below: trees.Tree = {"d": {"e": DEEP, "gone": "x"}, "kept": {"z": "z"}, "f": "f", "l": Symlink(target="d")}
    parts = [file(b"d/e/new"), file(b".wh.f"), hard_link(b"k", b"f"), file(b"kept", b"file"), file(b".wh..wh..opq")]
    with copied(name, memory, [lambda path: trees.build(path, below)]) as pair:
        assert_same_outcome(*pair, [parts[0], parts[2], parts[1], *parts[3:]])


@pytest.mark.needs("root", "tmpfs-xattr")
@pytest.mark.parametrize("parts", [
    [file(b"f/x")], [file(b"d/x"), file(b"d/x/y")], [hard_link(b"z", b"gone")], [hard_link(b"z", b"d/gone")],
    [hard_link(b"z", b"d")], [file(b"loop/x")], [file(b"f/.wh.x")],
    [file(b"mark/x")], [hard_link(b"z", b"mark/x")], [file(b"mark/.wh.x")],
    [file(b".wh.f"), hard_link(b"z", b"f")], [file(b"d/.wh..wh..opq"), hard_link(b"z", b"d/x")],
])  # fmt: skip
def test_what_is_refused(name: str, memory: Path, parts: list[bytes]) -> None:
    """In the same words."""
    below: trees.Tree = {
        "f": "f", "d": DEEP, "gone": "x", "loop": Symlink(target="loop"), "mark": Symlink(target="d/.wh.x"),
    }  # fmt: skip
    said = []
    with copied(name, memory, [lambda path: trees.build(path, below), lambda path: os.unlink(f"{path}/gone")]) as pair:
        for driver in pair:
            with pytest.raises(ArchiveError) as raised:
                apply(driver, "unpacked", tape.stream(*parts))
            said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.needs("root", "tmpfs-xattr")
def test_names_whose_whiteouts_are_longer_than_names_can_be(name: str, memory: Path) -> None:
    """Each goes, comes again as another kind, and lets what was below shine through nowhere; so in the next layer."""
    removed, replaced, emptied, again = "r" * 252, 127 * "ä" + "n", "€" * 85, "a" * 254
    long: trees.Tree = {each: {each: each, "d": {each: "deep"}} for each in (removed, replaced, emptied, again)}
    inside: trees.Tree = {**long, "f": {each: each for each in long}, "h": HardLink(f"{again}/{again}")}
    below: trees.Tree = {"d": inside, "o": long, **long}

    def at(*path: str) -> bytes:
        return os.fsencode("/".join(path))

    one = [part for where in ([], ["d"]) for part in (
        file(at(*where, ".wh." + removed)), file(at(*where, ".wh." + replaced)), file(at(*where, replaced), b"new"),
        file(at(*where, emptied, ".wh." + emptied)), file(at(*where, emptied, "d", ".wh..wh..opq")),
        file(at(*where, ".wh." + again)), file(at(*where, again, again, "x")),
    )]  # fmt: skip
    one += [file(at("d/f/.wh." + each)) for each in long] + [file(b"o/.wh..wh..opq")]
    two = [
        file(at("d/f", removed), b"again"), directory(at("d", removed)), directory(at(removed, "d")),
        file(at(".wh." + again)), file(at("d", again, ".wh." + again)), hard_link(at("o", emptied), at("d", replaced)),
        file(at("d", emptied, emptied)), file(at(emptied, ".wh.d")), symlink(at(replaced), b"x"),
    ]  # fmt: skip

    def change(path: str) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            extract(tape.stream(*one), fd)
        finally:
            os.close(fd)

    for layers, parts in (([], one), ([change], two)):
        place = memory / str(len(layers))
        place.mkdir()
        with copied(name, place, [lambda path: trees.build(path, below), *layers]) as pair:
            assert_same_outcome(*pair, parts)


@pytest.mark.needs("root", "tmpfs-xattr", "fuse")
def test_where_no_device_can_be_made_a_whiteout_hides_alone(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: object, **more: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    long = "n" * 255
    with opened("fuse-aufs", memory / "layers") as driver:
        with mounted(driver.prepare("key")) as path:
            trees.build(path, {long: {"x": "x"}, "d": {long: "x"}})
        driver.commit("base", "key")
        driver.prepare("key", "base")
        with monkeypatch.context() as patched:
            patched.setattr(os, "mknod", refuses)
            apply(driver, "key", tape.stream(file(b".wh." + long.encode()), file(b"d/.wh." + long.encode())))
        driver.commit("none", "key")
        told = sorted((change.kind, change.path) for change in changes(driver, "none"))
        assert told == [("C", b"/d"), ("D", b"/d/" + long.encode()), ("D", b"/" + long.encode())]
        with mounted(driver.view("look", "none")) as path:
            trees.assert_tree(path, {"d": {}})
        driver.remove("look")
        driver.prepare("key", "none")
        apply(driver, "key", tape.stream(file(long.encode() + b"/y"), file(b"d/" + long.encode(), b"new")))
        with mounted(driver.mounts("key")) as path:
            trees.assert_tree(path, {long: {"y": b""}, "d": {long: "new"}})
        driver.remove("key")


@pytest.mark.needs("root", "tmpfs-xattr")
def test_nothing_is_mounted_but_directories(name: str, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer upon layer: no server and no overlay for any of them."""

    def never(mount: Mount) -> Tree:
        raise AssertionError(mount.describe())

    with opened(name, memory / "layers") as driver:
        with monkeypatch.context() as patched:
            for kind in ("unionfs", "overlay"):
                patched.setitem(tree._MAKERS, kind, never)
            parent = ""
            for number in range(25):
                driver.prepare("key", parent)
                apply(driver, "key", tape.stream(file(b"d/f%d" % number), file(b"d/.wh.f%d" % (number - 2))))
                driver.commit(f"layer-{number}", "key")
                parent = f"layer-{number}"
        with mounted(driver.view("look", parent)) as path:
            trees.assert_tree(path, {"d": {"f23": "", "f24": ""}})
        driver.remove("look")


@pytest.mark.needs("root", "tmpfs-xattr", "fuse")
def test_pseudo_links_are_left_to_the_union(memory: Path) -> None:
    """One name of a file of two was changed in a container: the other name is the changed file as well."""
    with opened("fuse-aufs", memory / "layers") as driver:
        with mounted(driver.prepare("one")) as path:
            trees.build(path, {"a": "old", "b": HardLink("a")})
        driver.commit("base", "one")
        with mounted(driver.prepare("two", "base")) as path:
            Path(path, "b").write_text("new")
        driver.commit("changed", "two")
        driver.prepare("three", "changed")
        assert driver.directories("three") is None
        apply(driver, "three", tape.stream(hard_link(b"c", b"a")))
        with mounted(driver.mounts("three")) as path:
            trees.assert_tree(path, {"a": "new", "b": HardLink("a"), "c": HardLink("a")})
        driver.remove("three")


@pytest.mark.needs("root", "tmpfs-xattr")
def test_what_is_mounted_is_not_written_to_beside_the_mount(memory: Path) -> None:
    with opened("fuse-aufs", memory / "layers") as driver:
        driver.prepare("one")
        driver.commit("base", "one")
        driver.prepare("key", "base")
        with target.opened(driver, "key") as first:
            with pytest.raises(InUse, match="writes to"), target.opened(driver, "key"):
                pass
            with pytest.raises(InUse):
                driver.commit("name", "key")
            extract(tape.stream(file(b"f")), first)
        driver.commit("name", "key")
