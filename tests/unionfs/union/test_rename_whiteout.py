"""RENAME_WHITEOUT: the old name is gone, and hidden in whatever the layer is put upon."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.mounting import Union
from tests.trees import Tree, build
from tests.unionfs.inprocess import ROOT, content, create, listing, union, walk
from unionfs.linux import consts, files
from unionfs.linux.consts import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

LOWER: Tree = {"f": "low", "d": {"x": "x"}, "g": "low g"}
UPPER: Tree = {"u": "up", "e": {"y": "y"}}
BELOW: Tree = dict.fromkeys(("f", "d", "u", "e"), "below")


@pytest.mark.parametrize("name", ["f", "d", "u", "e"])
@pytest.mark.parametrize("target", ["new", "g"])
def test_the_layer_hides_the_old_name(tmp_path: Path, name: str, target: str) -> None:
    build(str(tmp_path / "low"), LOWER)
    build(str(tmp_path / "up"), UPPER)
    build(str(tmp_path / "below"), BELOW)
    with union(tmp_path) as fs:
        if name in ("d", "e") and target == "g":
            fs.unlink(ROOT, b"g")
        before = walk(fs, name)
        fs.rename(ROOT, name.encode(), ROOT, target.encode(), RENAME_WHITEOUT)
        assert fs.lookup(ROOT, name.encode()) is None
        assert walk(fs, target) == before
        assert name.encode() not in listing(fs)
        fs.check_invariants()
    with union(tmp_path, "below") as fs:
        assert fs.lookup(ROOT, name.encode()) is None, "the layer beneath shines through"
        assert fs.lookup(ROOT, target.encode()) is not None


def test_the_old_name_can_be_taken_again(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    build(str(tmp_path / "up"), UPPER)
    with union(tmp_path) as fs:
        fs.rename(ROOT, b"u", ROOT, b"new", RENAME_WHITEOUT)
        create(fs, ROOT, b"u", b"again")
        fs.rename(ROOT, b"d", ROOT, b"new-d", RENAME_WHITEOUT)
        assert listing(fs, fs.mkdir(ROOT, b"d", 0o755, 0, 0).ino) == []
        fs.rename(ROOT, b"new", ROOT, b"u", RENAME_WHITEOUT)
        assert content(fs, walk(fs, "u")) == b"up"
    assert ".wh.u" not in os.listdir(tmp_path / "up")
    assert ".wh.new" in os.listdir(tmp_path / "up")


def test_flags_that_go_together_and_that_do_not(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        for flags in (RENAME_WHITEOUT | RENAME_EXCHANGE, RENAME_NOREPLACE | RENAME_EXCHANGE, 8):
            with fails(errno.EINVAL):
                fs.rename(ROOT, b"f", ROOT, b"g", flags)
        with fails(errno.EEXIST):
            fs.rename(ROOT, b"f", ROOT, b"g", RENAME_WHITEOUT | RENAME_NOREPLACE)
        fs.rename(ROOT, b"f", ROOT, b"f", RENAME_WHITEOUT)
        assert content(fs, walk(fs, "f")) == b"low"
        fs.rename(ROOT, b"f", ROOT, b"new", RENAME_WHITEOUT | RENAME_NOREPLACE)
        assert listing(fs) == [b"d", b"g", b"new"]


@pytest.mark.needs("fuse")
def test_through_the_kernel(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    build(str(tmp_path / "up"), UPPER)
    at = mount_union("low", "up").path
    for name in ("u", "f"):
        old, new = os.fsencode(f"{at}/{name}"), os.fsencode(f"{at}/{name}-new")
        files.renameat2(consts.AT_FDCWD, old, consts.AT_FDCWD, new, RENAME_WHITEOUT)
        assert not os.path.lexists(old)
        assert os.path.exists(new)
    assert sorted(os.listdir(at)) == ["d", "e", "f-new", "g", "u-new"]
    assert {".wh.u", ".wh.f"} < set(os.listdir(tmp_path / "up"))
