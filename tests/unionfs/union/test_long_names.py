"""Names whose `.wh.NAME` would be longer than a name can be: what hides them in a branch, to us and to others."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.archive.extract import extract
from tests.contracts.posix.case import content, fails, put
from tests.contracts.posix.renames import rename2
from tests.mounting import TRANSPORTS, Union, mounted
from tests.trees import OVERLAY_WHITEOUT, Tree, assert_tree, build, whiteout_of
from tests.unionfs.inprocess import ROOT, listing, snapshot, union, walk
from tests.unionfs.long_names import DIRECTORIES, LONG, LOWER, NAMES
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("fuse", "trusted-xattr")

MARK = whiteout_of(LONG)


def test_the_form() -> None:
    """AUFS's as far as it goes; for the rest a name of the union's own, which others leave alone and which fits."""
    assert whiteout_of("n" * 251) == ".wh." + "n" * 251
    for name in (*NAMES, LONG):
        digest = hashlib.blake2b(name.encode(), digest_size=32).hexdigest()
        assert whiteout_of(name) == f".wh..wh.long.{digest}"


def hidden(directory: Path, *names: str, device: bool = True) -> None:
    """The branch's directory hides these names, and the devices that say it to others are there or not."""
    for name in names:
        assert stat.S_ISREG(os.lstat(directory / whiteout_of(name)).st_mode)
        assert os.path.lexists(directory / name) == device
        if device:
            entry = os.lstat(directory / name)
            assert (stat.S_ISCHR(entry.st_mode), entry.st_rdev) == (True, 0)


def test_they_go_and_stay_away(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Removed, renamed and replaced, with all that is in them; a later mount shows the same, as writable and as lower
    branch, and so does overlayfs."""
    build(str(tmp_path / "low"), LOWER)
    union = mount_union("low", "up")
    m = union.path
    os.unlink(f"{m}/{LONG}")
    for name in NAMES[:2]:
        os.unlink(f"{m}/f/{name}")
        shutil.rmtree(f"{m}/d/{name}")
    os.rename(f"{m}/f/{NAMES[2]}", f"{m}/moved")
    os.rename(f"{m}/d/{NAMES[2]}", f"{m}/f/{NAMES[2]}")
    put(f"{m}/f/{NAMES[3]}", b"copied up")
    os.unlink(f"{m}/f/{NAMES[3]}")
    os.mkdir(f"{m}/f/{NAMES[3]}")
    os.unlink(f"{m}/h/{LONG}")
    shutil.rmtree(f"{m}/d/{NAMES[3]}/{LONG}")
    expected: Tree = {
        "short": "s", "moved": "low", "d": {NAMES[3]: {NAMES[3]: "low"}}, "h": {"h2": "linked"},
        "f": {NAMES[2]: {NAMES[2]: "low", LONG: {LONG: "deep"}}, NAMES[3]: {}},
    }  # fmt: skip
    assert_tree(m, expected)
    union.remount()
    assert_tree(m, expected)
    for directory in ("f", "d"):
        assert sorted(os.listdir(f"{m}/{directory}")) == sorted(expected[directory])  # type: ignore[arg-type]
    union.unmount()
    hidden(tmp_path / "up", LONG)
    hidden(tmp_path / "up/f", *NAMES[:2])
    hidden(tmp_path / "up/d", *NAMES[:3])
    hidden(tmp_path / "up/h", LONG)
    hidden(tmp_path / f"up/d/{NAMES[3]}", LONG)
    assert sorted(os.listdir(tmp_path / "up/f")) == sorted([*NAMES, *map(whiteout_of, NAMES[:2])])
    above = mount_union("low", "up=ro", "top")
    assert_tree(above.path, expected)
    for directory in ("f", "d"):
        shutil.rmtree(f"{above.path}/{directory}")
        os.mkdir(f"{above.path}/{directory}")
    put(f"{above.path}/{LONG}", b"again")
    expected = {**expected, "f": {}, "d": {}, LONG: "again"}
    above.remount()
    assert_tree(above.path, expected)


@pytest.mark.parametrize("transport", ["auto"])
@pytest.mark.needs("overlay")
def test_overlayfs_understands_the_branch(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    union = mount_union("low", "up")
    os.rename(f"{union.path}/{LONG}", f"{union.path}/{NAMES[0]}")
    for name in NAMES:
        os.unlink(f"{union.path}/f/{name}")
        shutil.rmtree(f"{union.path}/d/{name}")
    union.unmount()
    layers = (f"lowerdir+={tmp_path}/up", f"lowerdir+={tmp_path}/low")
    with mounted([Mount("overlay", "overlay", layers)]) as path:
        assert sorted(os.listdir(f"{path}/f")) == sorted(map(whiteout_of, NAMES))
        assert not os.path.lexists(f"{path}/{LONG}")
        assert content(f"{path}/{NAMES[0]}") == b"low"


@pytest.mark.parametrize("transport", ["auto"])
@pytest.mark.needs("program:tar")
def test_a_branch_as_tar_packs_it(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """It is a layer to who does not know what our whiteouts of such names hide: devices 0:0 hide for them."""
    build(str(tmp_path / "low"), LOWER)
    union = mount_union("low", "up")
    for name in NAMES:
        os.unlink(f"{union.path}/f/{name}")
        shutil.rmtree(f"{union.path}/d/{name}")
    os.rename(f"{union.path}/{LONG}", f"{union.path}/moved")
    shutil.rmtree(f"{union.path}/h")
    union.unmount()
    packed = subprocess.run(["tar", "-C", tmp_path / "up", "-c", "."], check=True, capture_output=True).stdout
    root = os.open(tmp_path / "low", os.O_RDONLY)
    try:
        extract(io.BytesIO(packed), root)
    finally:
        os.close(root)
    assert_tree(str(tmp_path / "low"), {"short": "s", "moved": "low", "f": {}, "d": {}})


@pytest.fixture
def on_overlayfs(tmp_path: Path) -> Iterator[Path]:
    """A directory of an overlay, in which no device 0:0 can be made."""
    build(str(tmp_path), {"o-lower": {}, "o-upper": {}, "o-work": {}, "overlay": {}})
    options = f"lowerdir={tmp_path}/o-lower,upperdir={tmp_path}/o-upper,workdir={tmp_path}/o-work"
    mounts.mount("overlay", str(tmp_path / "overlay"), "overlay", 0, options)
    try:
        with fails(errno.EPERM):
            os.mknod(tmp_path / "overlay/w", stat.S_IFCHR, 0)
        yield tmp_path / "overlay"
    finally:
        mounts.umount2(str(tmp_path / "overlay"))


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_where_no_device_can_be_made(on_overlayfs: Path, tmp_path: Path, transport: str) -> None:
    """The whiteout alone hides them."""
    build(str(on_overlayfs / "low"), LOWER)
    (on_overlayfs / "up").mkdir()
    union = Union(str(tmp_path), [f"{on_overlayfs}/low=ro", f"{on_overlayfs}/up"], transport=transport).mount()
    try:
        for name in NAMES:
            os.unlink(f"{union.path}/f/{name}")
            shutil.rmtree(f"{union.path}/d/{name}")
        for name in NAMES[2:]:
            os.mkdir(f"{union.path}/d/{name}")
            os.rename(f"{union.path}/{LONG}", f"{union.path}/f/{name}")
            os.rename(f"{union.path}/f/{name}", f"{union.path}/{LONG}")
        os.unlink(f"{union.path}/{LONG}")
        expected: Tree = {"short": "s", "f": {}, "d": {name: {} for name in NAMES[2:]},
                          "h": {LONG: "linked", "h2": "linked"}}  # fmt: skip
        assert_tree(union.path, expected)
        union.unmount()
        hidden(on_overlayfs / "up/f", *NAMES, device=False)
        hidden(on_overlayfs / "up/d", *NAMES[:2], device=False)
        lower = [f"{on_overlayfs}/low=ro", f"{on_overlayfs}/up=ro"]
        for branches in ([*lower[:1], f"{on_overlayfs}/up"], lower, [*lower, f"{tmp_path}/top"]):
            os.makedirs(tmp_path / "top", exist_ok=True)
            union = Union(str(tmp_path), branches, transport=transport).mount()
            assert_tree(union.path, expected)
            union.unmount()
    finally:
        union.close()


BETWEEN: dict[str, tuple[Tree, Tree]] = {
    "a whiteout of ours": ({MARK: ""}, {}),
    "overlayfs's": ({LONG: OVERLAY_WHITEOUT}, {}),
    "both": ({MARK: "", LONG: OVERLAY_WHITEOUT}, {}),
    "one beside an entry": ({MARK: "", LONG: "mid"}, {LONG: "mid"}),
    "one beside a directory": ({MARK: "", LONG: {"m": "m"}}, {LONG: {"m": "m"}}),
    "one of another name": ({whiteout_of(NAMES[0]): "", LONG: {"m": "m"}}, {LONG: {"m": "m", "b": "b"}}),
}  # fmt: skip


@pytest.mark.parametrize("transport", ["auto"])
@pytest.mark.parametrize("what", BETWEEN)
def test_in_the_middle_of_branches(mount_union: Callable[..., Union], tmp_path: Path, what: str) -> None:
    """What a lower branch hides, it hides of those below it; alone, and below a writable one; looked up and listed."""
    tree, expected = BETWEEN[what]
    build(str(tmp_path), {
        "bottom": {"d": {LONG: {"b": "b"}}}, "mid": {"d": tree}, "over": {"d": {}}, "up": {"d": {"x": ""}},
    })  # fmt: skip
    more: Tree = {}
    for top in ("over=ro", "up"):
        m = mount_union("bottom=ro", "mid=ro", top).path
        assert sorted(os.listdir(f"{m}/d")) == sorted({**expected, **more})
        assert os.path.lexists(f"{m}/d/{LONG}") == (LONG in expected)
        assert_tree(m, {"d": {**expected, **more}})
        more = {"x": ""}
    if LONG in expected and not isinstance(expected[LONG], str):
        shutil.rmtree(f"{m}/d/{LONG}")
    os.rename(f"{m}/d", f"{m}/e")  # copied up whole
    os.unlink(f"{m}/e/x")
    if isinstance(expected.get(LONG), str):
        os.unlink(f"{m}/e/{LONG}")
    os.rmdir(f"{m}/e")
    assert os.listdir(m) == []


def test_listed_among_many(tmp_path: Path) -> None:
    """A lower directory's whiteouts do not tell what they hide, and its names are asked for without a look at each."""
    names = [f"{number:0252}" for number in range(300)]
    others = [f"{number}" for number in range(50)]
    whiteouts = {whiteout_of(name): "" for name in names[::2]}
    build(str(tmp_path), {
        "bottom": {"d": dict.fromkeys(names, "")}, "mid": {"d": {**whiteouts, **dict.fromkeys(others, "")}},
    })  # fmt: skip
    with union(tmp_path, "mid", "bottom") as fs:
        directory = walk(fs, "d")
        assert sorted(map(os.fsdecode, listing(fs, directory))) == sorted([*others, *names[1::2]])
        for name in others:
            fs.unlink(directory, name.encode())
        for name in names[1::4]:
            fs.unlink(directory, name.encode())
        assert sorted(map(os.fsdecode, listing(fs, directory))) == sorted(names[3::4])
        fs.check_invariants()
    with union(tmp_path, "mid", "bottom") as fs:
        directory = walk(fs, "d")
        for name in names[3::4]:
            fs.unlink(directory, name.encode())
        fs.rmdir(ROOT, b"d")
        fs.mkdir(ROOT, b"d", 0o755, 0, 0)
        assert list(snapshot(fs)) == ["d"]


def test_exchange_and_whiteouts_of_renames(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path), {"low": LOWER, "up": {"new": "new"}})
    union = mount_union("low", "up")
    m = union.path
    rename2(f"{m}/{LONG}", f"{m}/f/{NAMES[0]}", consts.RENAME_EXCHANGE)
    rename2(f"{m}/d/{NAMES[0]}", f"{m}/f/{NAMES[0]}", consts.RENAME_EXCHANGE)
    rename2(f"{m}/new", f"{m}/{'w' * 255}", 0)
    rename2(f"{m}/{'w' * 255}", f"{m}/new", consts.RENAME_WHITEOUT)
    expected: Tree = {
        **LOWER, "new": "new", "f": {name: {name: "low", LONG: {LONG: "deep"}} if name == NAMES[0] else "low"
                                     for name in NAMES},
        "d": {**DIRECTORIES, NAMES[0]: "low"},
    }  # fmt: skip
    assert_tree(m, expected)
    union.remount()
    assert_tree(m, expected)
    hidden(tmp_path / "up", "w" * 255)
    assert not os.path.lexists(tmp_path / "up" / MARK), "nothing was removed"


def test_a_new_name_leaves_no_whiteout(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    union = mount_union("low", "up")
    os.unlink(f"{union.path}/{LONG}")
    put(f"{union.path}/{LONG}", b"new")
    shutil.rmtree(f"{union.path}/d/{NAMES[0]}")
    os.mkdir(f"{union.path}/d/{NAMES[0]}")
    union.unmount()
    assert_tree(str(tmp_path / "up"), {
        LONG: "new", "d": {NAMES[0]: {".wh..wh..opq": ""}}, ".wh..wh.aufs": "",
    })  # fmt: skip
