"""New entries belong to who asked for them and inherit what their directory hands down, whichever way they are made."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.posix.acl import DEFAULT, HANDED_DOWN
from tests.contracts.posix.case import fails
from tests.trees import Dir, build
from tests.unionfs.inprocess import listing, union, walk
from unionfs.union.attributes import Attr
from unionfs.union.fs import UnionFs

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]


def create(fs: UnionFs, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attr:
    fh, attr = fs.create(parent, name, mode, uid, gid)
    fs.release(fh)
    return attr


KINDS: dict[str, Callable[[UnionFs, int, bytes, int, int, int], Attr]] = {
    "file": create,
    "fifo": lambda fs, parent, name, mode, uid, gid: fs.mknod(parent, name, stat.S_IFIFO | mode, 0, uid, gid),
    "device": lambda fs, parent, name, mode, uid, gid: fs.mknod(
        parent, name, stat.S_IFCHR | mode, os.makedev(1, 3), uid, gid
    ),
    "symlink": lambda fs, parent, name, mode, uid, gid: fs.symlink(parent, name, b"target", uid, gid),
    "directory": lambda fs, parent, name, mode, uid, gid: fs.mkdir(parent, name, mode, uid, gid),
}
PARENTS = {"plain": 0o755, "set-group-ID": 0o2755, "default ACL": 0o755}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build(str(tmp_path / "low"), {name: Dir({"gone": {"x": ""}}, mode=mode, gid=9) for name, mode in PARENTS.items()})
    os.setxattr(tmp_path / "low" / "default ACL", DEFAULT, HANDED_DOWN)
    return tmp_path


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_made_at_once_or_in_steps(base: Path, kind: str, parent: str) -> None:
    """What is the server's own user's is made in place, what is another's in steps: all but the owner is the same."""
    make = KINDS[kind]
    with union(base) as fs:
        directory = walk(fs, parent)
        for mode in (0o644, 0o600, 0o777, 0o1777, 0o2755, 0o6711, 0o444, 0):
            made: dict[tuple[int, int], Attr] = {}
            for uid, gid in ((0, 0), (5, 6), (0, 6), (5, 0)):
                attr = made[uid, gid] = make(fs, directory, b"%o %d %d" % (mode, uid, gid), mode, uid, gid)
                assert (attr.st.st_uid, attr.st.st_gid) == (uid, 9 if parent == "set-group-ID" else gid)
                assert attr == fs.getattr(attr.ino)
            modes = {attr.st.st_mode for attr in made.values()}
            assert len(modes) == 1, [oct(mode) for mode in modes]
            if kind != "symlink" and parent != "default ACL":
                handed_down = stat.S_ISGID if kind == "directory" and parent == "set-group-ID" else 0
                assert stat.S_IMODE(modes.pop()) == mode | handed_down
            attributes = [{name: fs.getxattr(attr.ino, name) for name in fs.listxattr(attr.ino)}
                          for attr in made.values()]
            assert all(one == attributes[0] for one in attributes)
            assert bool(attributes[0]) == (parent == "default ACL" and kind != "symlink")
        fs.check_invariants()
    assert not os.path.exists(base / "up" / ".wh..wh.orph")


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_behind_our_back_is_kept(base: Path, kind: str) -> None:
    """The kernel keeps for ever that there was no such name, and asks no more before it has one made."""
    (base / "up" / "plain").mkdir(parents=True, exist_ok=True)
    with union(base) as fs:
        directory = walk(fs, "plain")
        assert fs.lookup(directory, b"new") is None
        (base / "up" / "plain" / "new").write_text("precious")
        for _ in range(2):
            with fails(errno.EEXIST):
                KINDS[kind](fs, directory, b"new", 0o755, 0, 0)
        assert (base / "up" / "plain" / "new").read_text() == "precious"


@pytest.mark.parametrize("owner", [(0, 0), (5, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_over_a_whiteout(base: Path, kind: str, owner: tuple[int, int]) -> None:
    """The whiteout goes, and nothing shines through what takes its place."""
    with union(base) as fs:
        directory = walk(fs, "plain")
        gone = walk(fs, "plain/gone")
        fs.unlink(gone, b"x")
        fs.rmdir(directory, b"gone")
        assert os.listdir(base / "up" / "plain") == [".wh.gone"]
        attr = KINDS[kind](fs, directory, b"gone", 0o755, *owner)
        assert os.listdir(base / "up" / "plain") == ["gone"]
        assert attr.nlink == os.lstat(base / "up" / "plain" / "gone").st_nlink
        fs.check_invariants()
    with union(base) as fs:
        assert fs.getattr(walk(fs, "plain/gone")).st.st_mode == attr.st.st_mode
        if kind == "directory":
            assert listing(fs, walk(fs, "plain/gone")) == []
