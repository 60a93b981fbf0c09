"""chattr(1)'s flags: shown as the branch's file has them, set on the file in the writable branch, enforced there."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.trees import Special, Symlink, Tree, build
from tests.unionfs.branch_flags import PORTABLE, change, descriptor, settable
from tests.unionfs.inprocess import ROOT, content, create, opened, union, walk, write
from unionfs.linux import files, mounts
from unionfs.linux.consts import (
    FS_APPEND_FL,
    FS_CASEFOLD_FL,
    FS_IMMUTABLE_FL,
    FS_NOATIME_FL,
    FS_NODUMP_FL,
    FS_XFLAG_IMMUTABLE,
    FS_XFLAG_NODUMP,
    STATX_ATTR_APPEND,
    STATX_ATTR_IMMUTABLE,
    STATX_ATTR_NODUMP,
)

pytestmark = [pytest.mark.needs("root", "trusted-xattr")]

LOWER: Tree = {"f": "lower", "d": {"x": "x"}, "l": Symlink("f"), "p": Special()}


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """LOWER in `low`; what is left immutable in it can be removed afterwards."""
    build(str(tmp_path / "low"), LOWER)
    if not settable(tmp_path / "low" / "f"):
        pytest.skip("the temporary directory's file system has no inode flags")
    yield tmp_path
    for directory, _, names in os.walk(tmp_path):
        for name in [".", *names]:
            with contextlib.suppress(OSError):
                change(Path(directory, name), 0)


def on_disk(path: Path) -> int:
    with descriptor(path) as fd:
        return files.get_flags(fd)


@pytest.mark.parametrize("flag", [FS_NODUMP_FL, FS_NOATIME_FL, FS_APPEND_FL, FS_IMMUTABLE_FL])
@pytest.mark.parametrize("path", ["f", "d", "new", ""])
def test_set_and_read_back(base: Path, path: str, flag: int) -> None:
    with union(base) as fs:
        create(fs, ROOT, b"new")
        ino = walk(fs, path)
        before = fs.get_flags(ino)
        fs.set_flags(ino, before | flag)
        assert fs.get_flags(ino) & PORTABLE == flag
        assert on_disk(base / "up" / path) & PORTABLE == flag
        fs.set_flags(ino, fs.get_flags(ino) & ~flag)
        assert fs.get_flags(ino) & PORTABLE == 0
    if (base / "low" / path).exists():
        assert on_disk(base / "low" / path) & PORTABLE == 0, "the lower one was changed"


def test_an_immutable_file(base: Path) -> None:
    """The branch's file system says no, also to a server of root's; the union is as it was."""
    with union(base) as fs:
        ino = create(fs, ROOT, b"new", b"data")
        fs.set_flags(ino, fs.get_flags(ino) | FS_IMMUTABLE_FL)
        attempts: list[Callable[[], object]] = [
            lambda: write(fs, ino, b"x"), lambda: fs.unlink(ROOT, b"new"), lambda: fs.rename(ROOT, b"new", ROOT, b"n2"),
            lambda: fs.setattr(ino, mode=0), lambda: fs.setattr(ino, size=0), lambda: fs.link(ino, ROOT, b"n2"),
        ]  # fmt: skip
        for attempt in attempts:
            with fails(errno.EPERM):
                attempt()
            fs.check_invariants()
        assert content(fs, ino) == b"data"
        fs.set_flags(ino, fs.get_flags(ino) & ~FS_IMMUTABLE_FL)
        fs.unlink(ROOT, b"new")


def test_an_immutable_copy_over_a_lower_file(base: Path) -> None:
    """Its removal begins with a whiteout, which must not show when the rest is refused."""
    with union(base) as fs:
        ino = walk(fs, "f")
        write(fs, ino, b"UPPER")
        fs.set_flags(ino, fs.get_flags(ino) | FS_IMMUTABLE_FL)
        attempts: list[Callable[[], None]] = [
            lambda: fs.unlink(ROOT, b"f"), lambda: fs.rename(ROOT, b"f", ROOT, b"g"),
        ]  # fmt: skip
        for attempt in attempts:
            with fails(errno.EPERM):
                attempt()
            assert content(fs, walk(fs, "f")) == b"UPPER"
            assert "f" in os.listdir(base / "up")
            assert ".wh.f" not in os.listdir(base / "up")
    with union(base) as fs:
        assert content(fs, walk(fs, "f")) == b"UPPER"


def test_an_append_only_file(base: Path) -> None:
    with union(base) as fs:
        ino = create(fs, ROOT, b"new", b"data")
        fs.set_flags(ino, fs.get_flags(ino) | FS_APPEND_FL)
        with fails(errno.EPERM):
            fs.setattr(ino, size=0)
        with fails(errno.EPERM):
            fs.unlink(ROOT, b"new")


def test_a_lower_immutable_file(base: Path) -> None:
    """It is what it is until somebody takes the flag away; then its copy is an ordinary file."""
    change(base / "low" / "f", FS_IMMUTABLE_FL | FS_NODUMP_FL)
    with union(base) as fs:
        ino = walk(fs, "f")
        assert fs.get_flags(ino) & PORTABLE == FS_IMMUTABLE_FL | FS_NODUMP_FL
        with fails(errno.EPERM):
            write(fs, ino, b"UPPER")
        assert os.listdir(base / "up") == []
        fs.set_flags(ino, fs.get_flags(ino) & ~FS_IMMUTABLE_FL)
        write(fs, ino, b"UPPER")
        assert content(fs, ino) == b"UPPER"
        assert fs.get_flags(ino) & PORTABLE == FS_NODUMP_FL
    assert (base / "low" / "f").read_text() == "lower"


def test_who_sets_flags_on_a_lower_file_says_all_of_them(base: Path) -> None:
    """chattr(1) reads, changes a bit and writes: what it read stays, on the copy."""
    change(base / "low" / "f", FS_IMMUTABLE_FL)
    with union(base) as fs:
        ino = walk(fs, "f")
        fs.set_flags(ino, fs.get_flags(ino) | FS_NODUMP_FL)
        assert fs.get_flags(ino) & PORTABLE == FS_IMMUTABLE_FL | FS_NODUMP_FL
        with fails(errno.EPERM):
            write(fs, ino, b"x")


@pytest.mark.needs("tmpfs")
def test_flags_of_storage_stay_behind(base: Path) -> None:
    """Ext4 shows how it stores a file (FS_EXTENT_FL); a tmpfs would refuse to be told so."""
    if on_disk(base / "low" / "f") == 0:
        pytest.skip("the temporary directory's file system shows no flag of its own")
    os.mkdir(base / "up")
    mounts.mount("test", str(base / "up"), "tmpfs")
    try:
        with union(base) as fs:
            ino = walk(fs, "f")
            try:
                fs.set_flags(ino, fs.get_flags(ino) | FS_NODUMP_FL)
            except OSError as error:
                if error.errno != errno.ENOTTY:
                    raise
                pytest.skip("this kernel's tmpfs has no inode flags")
            assert fs.get_flags(ino) == FS_NODUMP_FL
            other = walk(fs, "d/x")
            attributes = fs.get_fsxattr(other)
            fs.set_fsxattr(other, struct.pack("<I", xflags(attributes) | FS_XFLAG_NODUMP) + attributes[4:])
            assert xflags(fs.get_fsxattr(other)) == FS_XFLAG_NODUMP
    finally:
        mounts.umount2(str(base / "up"))


def xflags(attributes: bytes) -> int:
    (flags,) = struct.unpack_from("<I", attributes)
    return int(flags)


def test_fsxattr(base: Path) -> None:
    with union(base) as fs:
        ino = walk(fs, "f")
        attributes = fs.get_fsxattr(ino)
        assert len(attributes) == 28
        flags, rest = xflags(attributes), attributes[4:]
        fs.set_fsxattr(ino, struct.pack("<I", flags | FS_XFLAG_NODUMP | FS_XFLAG_IMMUTABLE) + rest)
        assert xflags(fs.get_fsxattr(ino)) & (FS_XFLAG_NODUMP | FS_XFLAG_IMMUTABLE) == 0x88
        assert fs.get_flags(ino) & PORTABLE == FS_NODUMP_FL | FS_IMMUTABLE_FL
        fs.set_fsxattr(ino, struct.pack("<I", flags) + rest)
        assert fs.get_flags(ino) & PORTABLE == 0
        for wrong in (b"", attributes[:20], attributes + b"\0"):
            with fails(errno.EINVAL):
                fs.set_fsxattr(ino, wrong)
    assert on_disk(base / "low" / "f") & PORTABLE == 0


def test_what_has_no_flags(base: Path) -> None:
    with union(base) as fs:
        for name in ("l", "p"):
            for attempt in (fs.get_flags, fs.get_fsxattr, lambda ino: fs.set_flags(ino, 0)):
                with fails(errno.ENOTTY):
                    attempt(walk(fs, name))
    assert sorted(os.listdir(base / "up")) == [], "nothing was copied up"


def test_names_stay_bytes(base: Path) -> None:
    with union(base) as fs:
        directory = walk(fs, "d")
        with fails(errno.EOPNOTSUPP):
            fs.set_flags(directory, fs.get_flags(directory) | FS_CASEFOLD_FL)
    assert os.listdir(base / "up") == [], "it was copied up before it was refused"


def test_a_read_only_union(base: Path) -> None:
    with union(base, upper=None) as fs:
        ino = walk(fs, "f")
        with fails(errno.EROFS):
            fs.set_flags(ino, fs.get_flags(ino) | FS_NODUMP_FL)
        fs.syncfs()


def test_flags_of_an_unlinked_file(base: Path) -> None:
    with union(base) as fs:
        ino = walk(fs, "f")
        with opened(fs, ino) as fh:
            fs.unlink(ROOT, b"f")
            fs.set_flags(ino, fs.get_flags(ino) | FS_NODUMP_FL)
            assert fs.get_flags(ino) & PORTABLE == FS_NODUMP_FL
            assert fs.read(fh, 0, 10) == b"lower"
    assert on_disk(base / "low" / "f") & PORTABLE == 0


def test_statx(base: Path) -> None:
    """The time of birth is the branch file's, and so are the attributes."""
    change(base / "low" / "f", FS_IMMUTABLE_FL)
    with union(base) as fs:
        ino = walk(fs, "f")
        attr, more = fs.statx(ino)
        assert attr == fs.getattr(ino)
        assert more == plain(base / "low" / "f")
        assert more.btime_ns is not None and more.btime_ns <= attr.st.st_ctime_ns
        assert more.attributes & more.attributes_mask & STATX_ATTR_IMMUTABLE
        fs.set_flags(ino, fs.get_flags(ino) & ~FS_IMMUTABLE_FL)
        write(fs, ino, b"copied")
        assert fs.statx(ino)[1] == plain(base / "up" / "f")
        assert not fs.statx(ino)[1].attributes & STATX_ATTR_IMMUTABLE
        fs.set_flags(ino, fs.get_flags(ino) | FS_NODUMP_FL | FS_APPEND_FL)
        wanted = STATX_ATTR_NODUMP | STATX_ATTR_APPEND
        assert fs.statx(ino)[1].attributes & wanted == wanted
        fs.set_flags(ino, fs.get_flags(ino) & ~PORTABLE)
        fs.unlink(ROOT, b"f")
        assert fs.statx(ino)[0].nlink == 0
        for name in ("", "d", "l", "p"):
            assert fs.statx(walk(fs, name))[1].btime_ns == plain(base / ("up" if not name else "low") / name).btime_ns


def plain(path: Path) -> files.Statx:
    at = os.open(path.parent, os.O_RDONLY)
    try:
        return files.statx(at, os.fsencode(path.name))
    finally:
        os.close(at)
