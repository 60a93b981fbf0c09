"""What a stack of branches shows, and what changes through the mount leave on disk: exactly an AUFS layer."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

from tests.contracts.posix.case import content, fails, put
from tests.mounting import Union
from tests.trees import (
    OVERLAY_WHITEOUT,
    Dir,
    Entry,
    File,
    Found,
    HardLink,
    Special,
    Symlink,
    Tree,
    assert_tree,
    build,
    diff,
    expected,
    read,
)

pytestmark = [pytest.mark.needs("fuse", "trusted-xattr")]

OPAQUE = ".wh..wh..opq"
FIFO = Special()

# name: (branches bottom to top, what the mount shows). A file's content names its branch where it matters.
MERGES: dict[str, tuple[list[Tree], Tree]] = {
    "one branch": ([{"a": "1", "d": {"b": "1"}}], {"a": "1", "d": {"b": "1"}}),
    "the higher entry wins": ([{"a": "0", "b": "0", "c": "0"}, {"b": "1", "c": "1"}, {"c": "2"}],
                              {"a": "0", "b": "1", "c": "2"}),
    "directories merge at every depth": (
        [{"d": {"x": "0", "e": {"p": "0"}}}, {"d": {"y": "1", "e": {"q": "1"}}}, {"d": {"e": {"p": "2"}}}],
        {"d": {"x": "0", "y": "1", "e": {"p": "2", "q": "1"}}}),
    "five branches": ([{"all": str(n), f"only{n}": str(n), "d": {f"in{n}": str(n)}} for n in range(5)],
                      {"all": "4", "only0": "0", "only1": "1", "only2": "2", "only3": "3", "only4": "4",
                       "d": {"in0": "0", "in1": "1", "in2": "2", "in3": "3", "in4": "4"}}),
    "a file hides a directory": ([{"x": {"deep": "0"}}, {"x": "1"}], {"x": "1"}),
    "a directory hides a file": ([{"x": "0"}, {"x": {"a": "1"}}], {"x": {"a": "1"}}),
    "a file between two directories cuts the merge": (
        [{"x": {"bottom": "0"}}, {"x": "1"}, {"x": {"top": "2"}}], {"x": {"top": "2"}}),
    "other types hide and are hidden": (
        [{"a": {"deep": "0"}, "b": FIFO, "c": Symlink("a")}, {"a": Symlink("b"), "b": {"n": "1"}, "c": FIFO}],
        {"a": Symlink("b"), "b": {"n": "1"}, "c": FIFO}),
    "the top directory's metadata counts": (
        [{"d": Dir({"a": "0"}, mode=0o700, uid=1)}, {"d": Dir({"b": "1"}, mode=0o1777, uid=2, gid=3)}],
        {"d": Dir({"a": "0", "b": "1"}, mode=0o1777, uid=2, gid=3)}),
    "a whiteout hides what is below": ([{"a": "0", "d": {"x": "0"}, "k": "0"}, {".wh.a": "", ".wh.d": ""}], {"k": "0"}),
    "a whiteout in the middle": ([{"a": "0", "b": "0"}, {".wh.a": "", ".wh.b": ""}, {"b": "2"}], {"b": "2"}),
    "a whiteout does not hide what is above": ([{"a": "0"}, {"a": "1"}, {"b": "2"}, {"a": "3"}], {"a": "3", "b": "2"}),
    "a whiteout above hides all below": ([{"a": "0"}, {"a": "1"}, {".wh.a": ""}, {}], {}),
    "a whiteout that hides nothing": ([{}, {".wh.gone": "", "a": "1"}], {"a": "1"}),
    "an entry wins over a whiteout beside it": ([{"a": "0", "d": {"x": "0"}},
                                                 {".wh.a": "", "a": "1", ".wh.d": "", "d": {"y": "1"}}],
                                                {"a": "1", "d": {"y": "1"}}),
    "a whited-out directory that is there again above": (
        [{"d": {"x": "0"}}, {".wh.d": ""}, {"d": {"y": "2"}}], {"d": {"y": "2"}}),
    "whiteouts inside directories": (
        [{"d": {"x": "0", "e": {"p": "0", "q": "0"}}}, {"d": {".wh.x": "", "e": {".wh.p": ""}}}],
        {"d": {"e": {"q": "0"}}}),
    "an opaque directory": ([{"d": {"x": "0"}}, {"d": {OPAQUE: "", "y": "1"}}], {"d": {"y": "1"}}),
    "an opaque directory in the middle": (
        [{"d": {"x": "0"}}, {"d": {OPAQUE: "", "y": "1"}}, {"d": {"z": "2"}}], {"d": {"y": "1", "z": "2"}}),
    "opaque hides all depths": (
        [{"d": {"e": {"x": "0"}}}, {"d": {OPAQUE: "", "e": {"y": "1"}}}], {"d": {"e": {"y": "1"}}}),
    "overlayfs whiteouts": (
        [{"a": "0", "d": {"x": "0"}, "k": "0"}, {"a": OVERLAY_WHITEOUT, "d": OVERLAY_WHITEOUT}], {"k": "0"}),
    "an overlayfs whiteout in the middle": ([{"a": "0", "b": "0"}, {"a": OVERLAY_WHITEOUT, "b": OVERLAY_WHITEOUT},
                                             {"b": "2"}], {"b": "2"}),
    "an overlayfs opaque directory": (
        [{"d": {"x": "0"}}, {"d": Dir({"y": "1"}, xattrs={"trusted.overlay.opaque": b"y"})}], {"d": {"y": "1"}}),
    "both forms in one stack": (
        [{"d": {"x": "0", "y": "0", "z": "0"}}, {"d": {"x": OVERLAY_WHITEOUT}}, {"d": {".wh.y": ""}}],
        {"d": {"z": "0"}}),
    "reserved names are not shown": (
        [{".wh..wh.plnk": {}, ".wh..wh.aufs": "", "a": "0"}, {".wh..wh.orph": {}, "d": {".wh.": ""}}],
        {"a": "0", "d": {}}),
    "names that only look reserved": ([{".wh": "0", "wh.a": "0", ".wharf": "0", ".why": {}}, {"a.wh.": "1"}],
                                      {".wh": "0", "wh.a": "0", ".wharf": "0", ".why": {}, "a.wh.": "1"}),
    "hard links below one another": ([{"a": "0", "b": HardLink("a"), "d": {"c": HardLink("../a")}}, {"d": {"e": "1"}}],
                                     {"a": "0", "b": HardLink("a"), "d": {"c": HardLink("../a"), "e": "1"}}),
}


DEPTH = max(len(branches) for branches, _ in MERGES.values())


@pytest.fixture(scope="module", params=["writable", "read-only"])
def merged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[str]:
    """One mount with a directory a case; a case of fewer branches than others takes the top ones."""
    home = str(tmp_path_factory.mktemp("merged"))
    paths = [build(f"{home}/branch{index}", {}) for index in range(DEPTH)]
    for name, (branches, _) in MERGES.items():
        for path, tree in zip(paths[DEPTH - len(branches) :], branches, strict=True):
            build(f"{path}/{name}", tree)
    before = [read(path) for path in paths[:-1]]
    specs = [f"{path}=ro" for path in paths] if request.param == "read-only" else paths
    union = Union(home, specs, transport=transport).mount()
    try:
        yield union.path
    finally:
        union.close()
    assert [read(path) for path in paths[:-1]] == before, "a lower branch changed"


@pytest.mark.parametrize("name", MERGES)
def test_what_is_seen(merged: str, name: str) -> None:
    _, seen = MERGES[name]
    assert_tree(f"{merged}/{name}", seen)


def test_an_opaque_root(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"a": "0", "d": {"x": "0"}})
    build(str(tmp_path / "middle"), {OPAQUE: "", "b": "1"})
    build(str(tmp_path / "up"), {"c": "2", ".wh.b": ""})
    union = mount_union("low", "middle", "up")
    assert_tree(union.path, {"c": "2"})
    put(f"{union.path}/a", b"new")
    os.mkdir(f"{union.path}/d")
    assert_tree(union.path, {"a": "new", "c": "2", "d": {}})


def test_hidden_names_cannot_be_looked_up(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """What a whiteout, an opaque directory or a file above hides is not reached by its path either."""
    build(str(tmp_path / "low"), {"w": "0", "d": {"x": "0"}, "o": {"p": "0"}, "f": {"q": "0"}, "c": "0"})
    build(str(tmp_path / "up"), {".wh.w": "", ".wh.d": "", "o": {OPAQUE: ""}, "f": "1", "c": OVERLAY_WHITEOUT})
    union = mount_union("low", "up")
    for path, code in {"w": errno.ENOENT, "d": errno.ENOENT, "d/x": errno.ENOENT, "o/p": errno.ENOENT,
                       "f/q": errno.ENOTDIR, "c": errno.ENOENT}.items():
        with fails(code):
            os.lstat(os.path.join(union.path, path))


RESERVED = [".wh.a", ".wh.", OPAQUE, ".wh..wh.orph", ".wh..wh.plnk", ".wh..wh.anything"]


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_names_are_refused(mount_union: Callable[..., Union], tmp_path: Path, name: str) -> None:
    """EPERM for whatever would make one; no entry for whatever would find one."""
    build(str(tmp_path / "low"), {"a": "0", "d": {"x": "0"}, "e": {}, "f": "0"})
    union = mount_union("low", "up")
    for directory in ("", "d/"):
        path = f"{union.path}/{directory}{name}"
        makes: list[Callable[[str], object]] = [
            lambda p: put(p, b""), os.mkdir, lambda p: os.symlink("x", p), os.mkfifo,
            lambda p: os.link(f"{union.path}/f", p), lambda p: os.rename(f"{union.path}/f", p),
            lambda p: os.rename(f"{union.path}/e", p),
        ]  # fmt: skip
        for make in makes:
            with fails(errno.EPERM):
                make(path)
        for find in (os.stat, os.unlink, os.rmdir, os.listdir, os.readlink):
            try:
                find(path)
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.EPERM)
            else:
                raise AssertionError(f"{find.__name__} found {name}")
    assert_tree(union.path, {"a": "0", "d": {"x": "0"}, "e": {}, "f": "0"})


LOWER: Tree = {"f": "low", "g": "low", "d": {"x": "low", "y": "low", "sub": {"z": "low"}}, "e": {"k": "low"},
               "l": Symlink("f"), "keep": "low"}


Run: TypeAlias = Callable[[str], object]

# name: (upper before, change through the mount, what the mount then shows besides "keep", the upper branch then).
# The root of the lower branch is LOWER; the work area and pseudo-links are not part of a layer and left out.
CHANGES: dict[str, tuple[Tree, Run, Tree, Tree]] = {}


def change(name: str, upper: Tree, shown: dict[str, Entry | None], after: Tree) -> Callable[[Run], None]:
    """Enter a change: `shown` are the entries of LOWER that differ afterwards, None for gone."""

    def enter(run: Run) -> None:
        tree = {k: v for k, v in {**LOWER, **upper, **shown}.items() if v is not None and not k.startswith(".wh.")}
        CHANGES[name] = (upper, run, tree, after)

    return enter


WH = File("", mode=0o444)

change("unlink a lower file", {}, {"f": None}, {".wh.f": WH})(lambda m: os.unlink(f"{m}/f"))
change("unlink a copied-up file", {"f": "up"}, {"f": None}, {".wh.f": WH})(lambda m: os.unlink(f"{m}/f"))
change("unlink an upper file", {"n": "up"}, {"n": None}, {})(lambda m: os.unlink(f"{m}/n"))
change("unlink in a lower directory", {}, {"d": {"y": "low", "sub": {"z": "low"}}}, {"d": {".wh.x": WH}})(
    lambda m: os.unlink(f"{m}/d/x"))
change("remove a lower directory", {}, {"e": None}, {".wh.e": WH})(lambda m: shutil.rmtree(f"{m}/e"))
change("remove a merged directory", {"e": {"n": "up"}}, {"e": None}, {".wh.e": WH})(lambda m: shutil.rmtree(f"{m}/e"))
change("remove an upper directory", {"n": {"x": "up"}}, {"n": None}, {})(lambda m: shutil.rmtree(f"{m}/n"))
change("remove an opaque directory", {"e": {OPAQUE: "", "n": "up"}}, {"e": None}, {".wh.e": WH})(
    lambda m: shutil.rmtree(f"{m}/e"))
change("create over a whiteout", {".wh.f": ""}, {"f": "new"}, {"f": "new"})(lambda m: put(f"{m}/f", b"new"))
change("symlink over a whiteout", {".wh.f": ""}, {"f": Symlink("t")}, {"f": Symlink("t")})(
    lambda m: os.symlink("t", f"{m}/f"))
change("link over a whiteout", {".wh.f": "", "n": "up"}, {"f": HardLink("n")}, {"f": HardLink("n"), "n": "up"})(
    lambda m: os.link(f"{m}/n", f"{m}/f"))
change("mkdir over a whiteout of a directory", {".wh.d": ""}, {"d": {}}, {"d": {OPAQUE: WH}})(
    lambda m: os.mkdir(f"{m}/d"))
change("create in a lower directory", {}, {"d": {**LOWER["d"], "n": "new"}}, {"d": {"n": "new"}})(  # type: ignore[dict-item]
    lambda m: put(f"{m}/d/n", b"new"))
change("write to a lower file", {}, {"d": {**LOWER["d"], "x": "new"}}, {"d": {"x": "new"}})(  # type: ignore[dict-item]
    lambda m: put(f"{m}/d/x", b"new"))
change("rename a lower file", {}, {"f": None, "n": "low"}, {".wh.f": WH, "n": "low"})(
    lambda m: os.rename(f"{m}/f", f"{m}/n"))
change("rename an upper file", {"o": "up"}, {"o": None, "n": "up"}, {"n": "up"})(
    lambda m: os.rename(f"{m}/o", f"{m}/n"))
change("rename an upper file over a lower one", {"n": "up"}, {"n": None, "f": "up"}, {"f": "up"})(
    lambda m: os.rename(f"{m}/n", f"{m}/f"))
change("rename a lower file over a lower one", {}, {"f": None, "g": "low"}, {".wh.f": WH, "g": "low"})(
    lambda m: os.rename(f"{m}/f", f"{m}/g"))
change("rename a lower symlink", {}, {"l": None, "n": Symlink("f")}, {".wh.l": WH, "n": Symlink("f")})(
    lambda m: os.rename(f"{m}/l", f"{m}/n"))
change("rename onto a whiteout", {".wh.f": ""}, {"f": "low", "g": None}, {"f": "low", ".wh.g": WH})(
    lambda m: os.rename(f"{m}/g", f"{m}/f"))
change("rename an upper directory onto a whiteout", {".wh.d": "", "n": {"q": "up"}}, {"n": None, "d": {"q": "up"}},
       {"d": {OPAQUE: WH, "q": "up"}})(lambda m: os.rename(f"{m}/n", f"{m}/d"))


@change("a file in place of a directory", {}, {"e": "new"}, {"e": "new"})
def _(m: str) -> None:
    shutil.rmtree(f"{m}/e")
    put(f"{m}/e", b"new")


@change("a directory in place of a file", {}, {"f": {"in": "new"}}, {"f": {"in": "new"}})
def _(m: str) -> None:
    os.unlink(f"{m}/f")
    os.mkdir(f"{m}/f")
    put(f"{m}/f/in", b"new")


change("read everything changes nothing", {}, {}, {})(lambda m: read(m))


def layer(path: str) -> dict[str, Found]:
    """The raw content of a branch without what is not part of a layer."""
    outside = (".wh..wh.orph", ".wh..wh.plnk", ".wh..wh.aufs", ".")
    return {name: found for name, found in read(path).items() if name.split("/")[0] not in outside}


def check_layer(upper: str, lower: str, tree: Tree) -> None:
    """The upper is exactly `tree`, but that a directory which hides nothing may be marked opaque all the same."""
    found, want = layer(upper), expected(tree)
    for name in [n for n in found if os.path.basename(n) == OPAQUE and n not in want]:
        beside = os.path.dirname(name)
        assert stat.S_ISDIR(want[beside].type), f"{name} is not in a directory"
        assert not os.path.isdir(os.path.join(lower, beside)), f"{name} hides lower entries"
        del found[name]
    # Whiteouts may be hard links of one base file (AUFS); how many there are is no part of the layer.
    differences = [line for line in diff(want, found) if not (".wh." in line and ": links is" in line)]
    assert not differences, "\n".join(differences)


class Changed(NamedTuple):
    home: str
    path: str  # the union, mounted again after the changes
    failures: dict[str, BaseException]  # of the changes and of what was seen right after


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Changed]:
    """One mount in which every change was made, in a directory of its own; then a new mount."""
    home = str(tmp_path_factory.mktemp("changed"))
    for name, (upper, _, _, _) in CHANGES.items():
        build(f"{home}/low/{name}", LOWER)
        build(f"{home}/up/{name}", upper)
    before = read(f"{home}/low")
    union = Union(home, [f"{home}/low", f"{home}/up"], transport=transport).mount()
    failures: dict[str, BaseException] = {}
    try:
        for name, (_, run, shown, _) in CHANGES.items():
            try:
                run(f"{union.path}/{name}")
                assert_tree(f"{union.path}/{name}", shown)
            except (OSError, AssertionError) as error:
                failures[name] = error
        union.remount()
        yield Changed(home, union.path, failures)
    finally:
        union.close()
    assert read(f"{home}/low") == before, "the lower branch changed"


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_leaves_on_disk(changed: Changed, name: str) -> None:
    _, _, shown, after = CHANGES[name]
    if name in changed.failures:
        raise changed.failures[name]
    check_layer(f"{changed.home}/up/{name}", f"{changed.home}/low/{name}", after)
    assert_tree(f"{changed.path}/{name}", shown)


def test_whiteouts_are_empty_and_read_only(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {f"f{n}": "" for n in range(5)})
    union = mount_union("low", "up")
    for name in os.listdir(union.path):
        os.unlink(f"{union.path}/{name}")
    union.unmount()
    infos = [os.lstat(tmp_path / "up" / f".wh.f{n}") for n in range(5)]
    assert {(info.st_size, info.st_mode) for info in infos} == {(0, stat.S_IFREG | 0o444)}


def test_the_work_area_is_empty_when_nothing_is_open(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    union = mount_union("low", "up")
    put(f"{union.path}/d/x", b"copied up")
    shutil.rmtree(f"{union.path}/d")
    os.rename(f"{union.path}/e", f"{union.path}/e2")
    with open(f"{union.path}/g") as held:
        os.unlink(f"{union.path}/g")
        assert held.read() == "low"
    union.unmount()
    work = tmp_path / "up" / ".wh..wh.orph"
    assert not work.exists() or os.listdir(work) == []
    if work.exists():
        assert stat.S_IMODE(os.stat(work).st_mode) == 0o700


def test_a_read_only_union_refuses_every_change(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    build(str(tmp_path / "up"), {"n": "up"})
    before = read(str(tmp_path / "low")), read(str(tmp_path / "up"))
    m = mount_union("low=ro", "up=ro").path
    attempts: list[Callable[[], object]] = [
        lambda: put(f"{m}/new", b""), lambda: put(f"{m}/f", b""), lambda: os.mkdir(f"{m}/new"),
        lambda: os.unlink(f"{m}/n"), lambda: os.rmdir(f"{m}/e"), lambda: os.rename(f"{m}/f", f"{m}/g"),
        lambda: os.chmod(f"{m}/f", 0o600), lambda: os.link(f"{m}/f", f"{m}/new"),
        lambda: os.symlink("x", f"{m}/new"), lambda: os.setxattr(f"{m}/f", "user.a", b""),
        lambda: os.utime(f"{m}/f"), lambda: os.truncate(f"{m}/f", 0), lambda: os.chown(f"{m}/f", 1, 1),
    ]  # fmt: skip
    for attempt in attempts:
        with fails(errno.EROFS):
            attempt()
    assert content(f"{m}/f") == b"low"
    assert (read(str(tmp_path / "low")), read(str(tmp_path / "up"))) == before
