"""What is told that work that takes long begins may refuse it: then nothing has changed, and the operation can be done
again (union/waiting.py). The transport of pyfuse3 rests on it.

Here every operation is refused once at each such place, on file systems that keep the order of changes and on one that
does not, and compared with what a union that is refused nothing does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pictures import Disk
from tests.trees import build, read
from tests.unionfs.inprocess import ROOT, union
from tests.unionfs.union.changes import CHANGES, LOW
from unionfs.union.fs import UnionFs
from unionfs.union.waiting import Waiting

pytestmark = pytest.mark.needs("loop", "user-xattr", "trusted-xattr")

KINDS = [pytest.param(name, marks=pytest.mark.needs(f"program:mkfs.{name}")) for name in ("ext4", "btrfs")]


class Refusing(Waiting):
    """The next `begins` but `passes`."""

    def __init__(self) -> None:
        self.passes = -1

    def begins(self) -> None:
        self.passes -= 1
        if self.passes == -1:
            raise InterruptedError(errno.EINTR, "elsewhere")


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with Disk(tmp_path, request.param).mounted() as path:
        yield path


def refused(fs: UnionFs, waiting: Refusing, act: Callable[[UnionFs], object], at: int) -> bool:
    waiting.passes = at
    try:
        act(fs)
    except InterruptedError:
        return True
    finally:
        waiting.passes = -1
    return False


def test_an_operation_that_is_refused_has_not_happened(disk: Path) -> None:
    places = 0
    for number, (name, change) in enumerate(CHANGES.items()):
        base = disk / str(number)
        build(str(base / "plain" / "low"), LOW)
        with union(base / "plain", volatile=False) as fs:
            change.before(fs)
            before = shown(fs)
            change.act(fs)
            after = shown(fs)
        for at in range(20):
            here = base / str(at)
            build(str(here / "low"), LOW)
            waiting = Refusing()
            with union(here, volatile=False) as fs:
                change.before(fs)
                fs._stack.waiting = waiting
                was_refused = refused(fs, waiting, change.act, at)
                if was_refused:
                    places += 1
                    assert shown(fs) == before, (name, at)
                    fs.check_invariants()
                    change.act(fs)
                assert shown(fs) == after, (name, at)
                fs.check_invariants()
            assert layer(here / "up") == layer(base / "plain" / "up"), (name, at)
            if not was_refused:
                break
    assert places > 8


def shown(fs: UnionFs, ino: int = ROOT, path: str = "") -> dict[str, tuple[int, int, int]]:
    """The mode of everything, links and size of all but directories, by its path."""
    found: dict[str, tuple[int, int, int]] = {}
    for name, attr, _ in fs.list_plus(ino, 0, 1000):
        if name in (b".", b".."):
            continue
        where = f"{path}/{os.fsdecode(name)}"
        is_directory = attr.st.st_mode & 0o170000 == 0o040000
        found[where] = (attr.st.st_mode, *((0, 0) if is_directory else (attr.nlink, attr.st.st_size)))
        if is_directory:
            found |= shown(fs, attr.number, where)
        fs.forget([(attr.number, 1)])
    return found


def layer(path: Path) -> list[str]:
    """What is in the writable branch. A pseudo-link is named by the number of its file."""
    return sorted("link" if name.startswith(".wh..wh.plnk/") else name for name in read(str(path)))
