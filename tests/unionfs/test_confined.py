"""A server that may do no more than its user, in a process of the test's: what it permits itself, and what it keeps."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.contracts.posix.case import in_child
from tests.trees import Dir, File, build
from tests.unionfs.inprocess import union, walk, write
from unionfs.union.fs import UnionFs

pytestmark = pytest.mark.needs("root", "user-xattr")

USER, TEAM = 2001, 8


@pytest.fixture
def home() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="confined-") as top:
        os.chown(top, USER, USER)
        os.chmod(top, 0o755)
        yield top


def in_union(home: str, act: Callable[[UnionFs], object], groups: tuple[int, ...] = ()) -> object:
    """What `act` returns of the user's union of `low` and `up`."""

    def served() -> object:
        with union(home) as fs:
            said = act(fs)
            fs.check_invariants()
            return said

    return in_child(served, uid=USER, groups=groups)


def mode(*path: str) -> int:
    return stat.S_IMODE(os.lstat(os.path.join(*path)).st_mode)


def test_set_group_id_that_he_could_not_give_again(home: str) -> None:
    """chmod(2) by who is not in the file's group takes the bit, even one that would leave all as it is."""
    build(home, {
        "low": Dir({"d": Dir({"f": File("x", uid=USER, gid=USER)}, uid=USER, gid=USER)}, uid=USER),
        "up": Dir({"d": Dir({}, mode=0o2555, uid=USER, gid=TEAM)}, uid=USER),
    })  # fmt: skip

    def change(fs: UnionFs) -> object:
        write(fs, walk(fs, "d/f"), b"y")
        return None

    with pytest.raises(PermissionError):
        in_union(home, change)
    assert mode(home, "up/d") == 0o2555
    assert os.listdir(f"{home}/up/d") == []
    in_union(home, change, groups=(TEAM,))
    assert mode(home, "up/d") == 0o2555
    assert os.listdir(f"{home}/up/d") == ["f"]
