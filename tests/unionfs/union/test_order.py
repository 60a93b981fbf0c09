"""What the order on disk costs: which changes wait for the disk on ext4 and on btrfs; `volatile` ones never do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import in_child
from tests.pictures import Disk
from tests.trees import Dir, Symlink, build
from tests.unionfs.inprocess import ROOT, create, listing, union, walk
from tests.unionfs.union.changes import CHANGES, LOW, Syncs, empty_d
from unionfs.linux import files
from unionfs.union import form, outlived

pytestmark = pytest.mark.needs("loop", "user-xattr", "trusted-xattr")

KINDS = [pytest.param(name, marks=pytest.mark.needs(f"program:mkfs.{name}")) for name in ("ext4", "btrfs")]


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    disk = Disk(tmp_path, request.param)
    with disk.mounted() as path:
        yield request.param, path


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Syncs]:
    """Counts those of this process from the last call on."""
    counts = [0, 0]

    def counted(index: int, call: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            counts[index] += 1
            call(fd)

        return sync

    def so_far() -> Syncs:
        found = Syncs(*counts)
        counts[:] = 0, 0
        return found

    monkeypatch.setattr(os, "fsync", counted(0, os.fsync))
    monkeypatch.setattr(files, "btrfs_commit", counted(1, files.btrfs_commit))
    return so_far


@pytest.mark.parametrize("volatile", [False, True], ids=["", "volatile"])
def test_which_changes_wait_for_the_disk(disk: tuple[str, Path], volatile: bool, syncs: Callable[[], Syncs]) -> None:
    fstype, path = disk
    found = {}
    for number, (name, change) in enumerate(CHANGES.items()):
        base = path / str(number)
        build(str(base / "low"), LOW)
        with union(base, volatile=volatile) as fs:
            change.before(fs)
            syncs()
            change.act(fs)
            found[name] = syncs()
            fs.check_invariants()
    wanted = {name: change.btrfs if fstype == "btrfs" else Syncs(change.ext4, 0) for name, change in CHANGES.items()}
    assert found == (dict.fromkeys(CHANGES, Syncs(0, 0)) if volatile else wanted)


@pytest.mark.needs("program:mkfs.btrfs")
def test_whiteouts_that_entries_outlived_go_many_at_once(
    tmp_path: Path, syncs: Callable[[], Syncs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those only the ones whose names still have an entry, and are whited out no more."""
    monkeypatch.setattr(outlived, "_MANY", 6)
    names = [b"0" * 255, *(b"%d" % number for number in range(1, 8))]
    with Disk(tmp_path, "btrfs").mounted() as path:
        build(str(path / "low"), {**{name.decode(): "low" for name in names}, "d": {"in": "low"}})
        with union(path, volatile=False) as fs:
            fs.unlink(walk(fs, "d"), b"in")
            create(fs, walk(fs, "d"), b"in", b"new")
            empty_d(fs)
            fs.rmdir(ROOT, b"d")
            for name in names[:4]:
                fs.unlink(ROOT, name)
                create(fs, ROOT, name, b"new")
            fs.unlink(ROOT, names[0])
            syncs()
            assert _whiteouts(path) == set(map(form.whiteout_of, (*names[:4], b"d")))
            fs.unlink(ROOT, names[4])
            create(fs, ROOT, names[4], b"new")
            assert syncs() == (0, 1)
            assert _whiteouts(path) == set(map(form.whiteout_of, (names[0], b"d")))
            assert set(listing(fs)) == set(names[1:])
            fs.check_invariants()
        with union(path) as fs:
            assert set(listing(fs)) == set(names[1:])


def _whiteouts(path: Path) -> set[bytes]:
    names = filter(form.is_reserved, os.listdir(os.fsencode(path / "up")))
    return {name for name in names if name not in (form.PSEUDO_LINKS, form.WORK_AREA)}


@pytest.mark.needs("program:mkfs.btrfs")
def test_whiteouts_of_somebody_else_are_good_enough(tmp_path: Path) -> None:
    """A link or a directory of that name hides as well, and can be synced only with everything."""
    with Disk(tmp_path, "btrfs").mounted() as path:
        build(str(path / "low"), dict.fromkeys("fghi", "low"))
        build(str(path / "up"), {**dict.fromkeys("fghi", "up"), ".wh.f": Symlink("nowhere"), ".wh.g": {}, ".wh.h": ""})
        os.mkfifo(path / "up/.wh.i")
        with union(path, volatile=False) as fs:
            for name in (b"f", b"g", b"h", b"i"):
                fs.unlink(ROOT, name)
            assert listing(fs) == []


USER = 2001


@pytest.mark.needs("program:mkfs.btrfs")
def test_a_directory_that_the_server_may_not_read() -> None:
    """It is open with O_PATH, and cannot be synced by itself."""
    with tempfile.TemporaryDirectory(prefix="order-") as home:
        os.chmod(home, 0o755)
        with Disk(Path(home), "btrfs").mounted() as path:
            build(str(path), {"low": {"d": Dir({"f": "f", "g": "g"}, mode=0o300), "e": Dir({"h": "h"}, mode=0o300)}})
            for directory, _, names in os.walk(path):
                for name in (".", *names):
                    os.chown(os.path.join(directory, name), USER, USER)

            def change() -> None:
                with union(path, volatile=False) as fs:
                    fs.rename(walk(fs, "d"), b"f", walk(fs, "d"), b"n")
                    fs.unlink(walk(fs, "d"), b"g")
                    fs.rename(walk(fs, "e"), b"h", ROOT, b"h")
                    fs.check_invariants()

            in_child(change, uid=USER)
            assert sorted(os.listdir(path / "up/d")) == [".wh.f", ".wh.g", "n"]
            assert sorted(os.listdir(path / "up/e")) == [".wh.h"]
            assert "h" in os.listdir(path / "up")
