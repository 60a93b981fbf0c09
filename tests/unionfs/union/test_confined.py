"""A server that may do no more than its user, in a process of the test's: what it permits itself, and what it keeps."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import in_child
from tests.trees import Dir, File, Symlink, build, whiteout_of
from tests.unionfs.inprocess import ROOT, union, walk, write
from unionfs.linux import files
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
        with union(Path(home)) as fs:
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


def test_a_directory_over_a_whiteout_is_made_when_it_has_its_name(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever there is no descriptor for after that."""
    build(home, {"low": Dir({"f": File("x", uid=USER, gid=USER)}, uid=USER, gid=USER)})
    rename, open_ = files.renameat2, os.open

    def none_left(*arguments: object, **more: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def renameat2(*arguments: int | bytes) -> None:
        rename(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "open", none_left)

    def change(fs: UnionFs) -> object:
        fs.unlink(ROOT, b"f")
        monkeypatch.setattr(files, "renameat2", renameat2)
        try:
            return stat.S_IMODE(fs.mkdir(ROOT, b"f", 0o555, USER, USER).st.st_mode)
        finally:
            monkeypatch.setattr(os, "open", open_)

    assert in_union(home, change) == 0o555
    assert mode(home, "up/f") == 0o555
    assert os.listdir(f"{home}/up/f") == [".wh..wh..opq"]


def test_a_read_only_directory_of_another_group_of_his(home: str) -> None:
    """It is not made in place, and moved there."""
    made = in_union(home, lambda fs: fs.mkdir(ROOT, b"d", 0o555, USER, TEAM).st.st_gid, groups=(TEAM,))
    assert made == TEAM
    assert mode(home, "up/d") == 0o555


def test_numbers_of_copies_that_can_be_read_are_not_kept(home: str) -> None:
    """Of others they are, for as long as they have a name."""
    names = [b"f%d" % n for n in range(6)]
    low = {name.decode(): File("x", uid=USER, gid=USER) for name in names}
    directory = Dir({}, uid=USER, gid=USER)
    build(home, {"low": Dir({"d": Dir({**low, "l": Symlink("f")}, uid=USER, gid=USER), "e": directory}, uid=USER)})
    os.chown(f"{home}/low/d/l", USER, USER, follow_symlinks=False)

    def change(fs: UnionFs) -> object:
        kept, d = [], walk(fs, "d")
        numbers = [walk(fs, f"d/{name.decode()}") for name in names]

        def count() -> None:
            kept.append(len(fs._stack.identity._origins))

        for number in numbers:
            write(fs, number, b"y")
        count()
        for number in numbers:
            fs.setattr(number, mode=0)
        count()
        fs.setattr(numbers[0], mode=0o600)
        count()
        fs.forget([(number, 1) for number in numbers[1:]])
        assert [walk(fs, f"d/{name.decode()}") for name in names] == numbers
        for name in names[1:4]:
            fs.unlink(d, name)
        count()
        fs.link(numbers[4], d, b"other")
        fs.unlink(d, names[4])
        count()
        fs.rename(d, names[5], d, b"other")
        count()
        fs.unlink(d, b"other")
        count()
        fs.rename(d, b"l", d, b"m")
        link = walk(fs, "d/m")
        fs.forget([(link, 1)])
        assert walk(fs, "d/m") == link
        fs.unlink(d, b"m")
        e = walk(fs, "e")
        fs.setattr(e, mode=0)
        count()
        fs.setattr(e, mode=0o700)
        count()
        return kept

    assert in_union(home, change) == [0, 6, 5, 2, 2, 1, 0, 1, 0]


def test_whiteouts_of_long_names_without_devices(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On kernels before 5.8 a user makes none, and nothing fails for it."""
    name = "n" * 255
    build(home, {"low": Dir({name: "low"}, uid=USER), "up": Dir({}, uid=USER)})

    def refuses(*arguments: object, **more: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def act(fs: UnionFs) -> object:
        if fs.lookup(ROOT, name.encode()) is None:
            fs.release(fs.create(ROOT, name.encode(), 0o644, USER, USER)[0])
        fs.unlink(ROOT, name.encode())
        assert fs.lookup(ROOT, name.encode()) is None
        return sorted(os.listdir(f"{home}/up"))

    monkeypatch.setattr(os, "mknod", refuses)
    for _ in range(2):
        assert in_union(home, act) == sorted([".wh..wh.aufs", whiteout_of(name)])
