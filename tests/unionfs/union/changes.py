"""One change of each kind of a union of `LOW`, with what it waits for on the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.trees import HardLink, Symlink, Tree
from tests.unionfs.inprocess import ROOT, create, listing, walk
from unionfs.linux.consts import RENAME_EXCHANGE
from unionfs.union.fs import UnionFs

LOW: Tree = {
    "f": "low", "g": "low", "empty": "", "h": "low", "hard": HardLink("h"), "l": Symlink("f"),
    "d": {"x": "x", "y": "y"}, "e": {},
}  # fmt: skip


class Syncs(NamedTuple):
    """How often one file was synced, and a transaction committed."""

    files: int
    commits: int


class Change(NamedTuple):
    before: Callable[[UnionFs], object]
    act: Callable[[UnionFs], object]
    ext4: int
    btrfs: Syncs


def empty_d(fs: UnionFs) -> None:
    for name in listing(fs, walk(fs, "d")):
        fs.unlink(walk(fs, "d"), name)


def empty_d_and_make_n(fs: UnionFs) -> None:
    empty_d(fs)
    fs.mkdir(ROOT, b"n", 0o755, 0, 0)


def _copied_up(name: str) -> Callable[[UnionFs], object]:
    return lambda fs: fs.setattr(walk(fs, name), mode=0o600)


def nothing(fs: UnionFs) -> None:
    pass


CHANGES = {
    "create": Change(nothing, lambda fs: create(fs, ROOT, b"n"), 0, Syncs(0, 0)),
    "create over a whiteout": Change(
        lambda fs: fs.unlink(ROOT, b"f"), lambda fs: create(fs, ROOT, b"f"), 0, Syncs(0, 0)),
    "mkdir over a whiteout": Change(
        lambda fs: fs.unlink(ROOT, b"f"), lambda fs: fs.mkdir(ROOT, b"f", 0o755, 0, 0), 0, Syncs(0, 0)),
    "copy-up": Change(nothing, _copied_up("f"), 1, Syncs(1, 0)),
    "copy-up of no bytes": Change(nothing, _copied_up("empty"), 0, Syncs(0, 0)),
    "unlink of a lower file": Change(nothing, lambda fs: fs.unlink(ROOT, b"f"), 0, Syncs(0, 0)),
    "unlink of a copied-up file": Change(_copied_up("f"), lambda fs: fs.unlink(ROOT, b"f"), 0, Syncs(1, 0)),
    "unlink of a new file": Change(lambda fs: create(fs, ROOT, b"n"), lambda fs: fs.unlink(ROOT, b"n"), 0, Syncs(0, 0)),
    "unlink of a lower hard link": Change(nothing, lambda fs: fs.unlink(ROOT, b"hard"), 1, Syncs(3, 0)),
    "rmdir of a lower directory": Change(nothing, lambda fs: fs.rmdir(ROOT, b"e"), 0, Syncs(0, 0)),
    "rmdir of a merged directory": Change(empty_d, lambda fs: fs.rmdir(ROOT, b"d"), 0, Syncs(1, 0)),
    "rename of a new file": Change(
        lambda fs: create(fs, ROOT, b"n"), lambda fs: fs.rename(ROOT, b"n", ROOT, b"o"), 0, Syncs(0, 0)),
    "rename over a lower file": Change(
        lambda fs: create(fs, ROOT, b"n"), lambda fs: fs.rename(ROOT, b"n", ROOT, b"f"), 0, Syncs(0, 0)),
    "rename of a lower file": Change(nothing, lambda fs: fs.rename(ROOT, b"f", ROOT, b"n"), 1, Syncs(2, 0)),
    "rename of a lower link": Change(nothing, lambda fs: fs.rename(ROOT, b"l", ROOT, b"n"), 0, Syncs(1, 0)),
    "rename of a lower directory": Change(nothing, lambda fs: fs.rename(ROOT, b"d", ROOT, b"n"), 2, Syncs(3, 1)),
    "rename over an emptied directory": Change(
        empty_d_and_make_n,
        lambda fs: fs.rename(ROOT, b"n", ROOT, b"d"), 0, Syncs(1, 0)),
    "exchange": Change(nothing, lambda fs: fs.rename(ROOT, b"f", ROOT, b"g", RENAME_EXCHANGE), 2, Syncs(2, 1)),
}  # fmt: skip
