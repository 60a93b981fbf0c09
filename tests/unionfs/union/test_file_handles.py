"""name_to_handle_at(2) and open_by_handle_at(2) on a union whose kernel has forgotten everything, or that was mounted
anew: a handle is good for as long as its file is there, as with overlayfs and nfs_export=on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.disk import loop
from tests.mounting import Union
from tests.trees import HardLink, Special, Symlink, Tree, build
from tests.unionfs.inprocess import ROOT, create, union, walk, write
from tests.unionfs.waiting import wait_until
from unionfs.linux import consts, mounts
from unionfs.transport import info

pytestmark = pytest.mark.needs("root", "fuse", "trusted-xattr")

_libc = ctypes.CDLL(None, use_errno=True)
_HEADER = 8  # of struct file_handle: handle_bytes, handle_type

LOWER: Tree = {
    "file": "lower", "link": Symlink("file"), "fifo": Special(stat.S_IFIFO),
    "a": {"b": {"c": {"deep": "deep", "linked": HardLink("../../../file")}}}, "gone": "", "written": "old",
    "moves": "m", "moved": {"inside": {"f": "in a directory that moves"}},
    "names": {"one": "linked", "two": HardLink("one")},
}  # fmt: skip


def handle_of(path: str) -> bytes:
    """struct file_handle of a file; of a symbolic link itself."""
    buffer = ctypes.create_string_buffer(_HEADER + 128)
    ctypes.c_uint.from_buffer(buffer).value = 128
    if _libc.name_to_handle_at(consts.AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(ctypes.c_int()), 0):
        raise OSError(ctypes.get_errno(), path)
    return buffer.raw[: _HEADER + ctypes.c_uint.from_buffer(buffer).value]


def with_number(handle: bytes, number: int) -> bytes:
    """As the kernel would make it of the file with another number (fuse_encode_fh(), fs/fuse/inode.c)."""
    words = (number >> 32, number & 0xFFFFFFFF)
    return handle[:_HEADER] + b"".join(word.to_bytes(4, "little") for word in words) + handle[_HEADER + 8 :]


@contextlib.contextmanager
def opened(union: Union, handle: bytes, flags: int = os.O_RDONLY) -> Iterator[int]:
    mount = os.open(union.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = _libc.open_by_handle_at(mount, ctypes.create_string_buffer(handle, len(handle)), flags)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(mount)
    try:
        yield fd
    finally:
        os.close(fd)


def is_stale(union: Union, handle: bytes) -> bool:
    try:
        with opened(union, handle, os.O_PATH):
            return False
    except OSError as error:
        assert error.errno == errno.ESTALE
        return True


def settle(union: Union) -> None:
    """Have the kernel forget all it can of this mount: a remount does that (reconfigure_super(), fs/super.c)."""
    mounts.mount("none", union.path, None, consts.MS_REMOUNT)
    wait_until(lambda: info.ask(union.path)["nodes"] == 1)


FORGETTING = {"forgotten": settle, "mounted anew": Union.remount}


@pytest.fixture(params=FORGETTING)
def forget(request: pytest.FixtureRequest) -> Callable[[Union], None]:
    return FORGETTING[request.param]


@pytest.fixture(params=["tmpfs", "ext4", "btrfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of that kind."""
    at = tmp_path / "branches"
    at.mkdir()
    with contextlib.ExitStack() as stack:
        if request.param == "tmpfs":
            source = "branches"
        else:
            image = tmp_path / "image"
            with open(image, "wb") as file:
                file.truncate(256 << 20)
            subprocess.run([f"mkfs.{request.param}", "-q", image], check=True)
            source = stack.enter_context(loop.attached(str(image)))
        mounts.mount(source, str(at), request.param)
        stack.callback(mounts.umount2, str(at), 0)
        yield at


@pytest.fixture
def made(place: Path, mount_union: Callable[..., Union]) -> Union:
    """LOWER below another lower branch and a writable one."""
    build(str(place / "low"), LOWER)
    build(str(place / "middle"), {"a": {"b": {"middle": "m"}}})
    return mount_union(str(place / "low"), str(place / "middle"), str(place / "up"))


needs_file_systems = pytest.mark.needs("loop", "tmpfs-xattr", "program:mkfs.ext4", "program:mkfs.btrfs")


def change(at: Path) -> None:
    """Something of every kind, that handles are taken of before."""
    (at / "written").write_text("new")
    (at / "moves").rename(at / "a" / "renamed")
    (at / "moved").rename(at / "a" / "b" / "elsewhere")
    (at / "names" / "one").write_text("changed")
    (at / "names" / "one").unlink()
    (at / "new").mkdir()
    (at / "new" / "file").write_text("upper")
    os.link(at / "new" / "file", at / "new" / "other")
    (at / "gone").unlink()


def everything(at: Path) -> Iterator[Path]:
    yield at
    for directory, directories, files in os.walk(at):
        yield from (Path(directory, name) for name in (*directories, *files))


@needs_file_systems
def test_every_file(made: Union, forget: Callable[[Union], None]) -> None:
    at = Path(made.path)
    early = {str(path.relative_to(at)): handle_of(str(path)) for path in everything(at)}
    change(at)
    handles = {str(path.relative_to(at)): handle_of(str(path)) for path in everything(at)}
    shown = {name: os.lstat(at / name) for name in handles}
    for _ in range(2):
        forget(made)
        for name, handle in handles.items():
            with opened(made, handle, os.O_PATH) as fd:
                found = os.fstat(fd)
                want = shown[name]
                assert (found.st_ino, found.st_mode) == (want.st_ino, want.st_mode), name
                assert stat.S_ISDIR(found.st_mode) or found.st_size == want.st_size, name
                if stat.S_ISDIR(found.st_mode):
                    again = os.open(".", os.O_RDONLY, dir_fd=fd)
                    assert sorted(os.listdir(again)) == sorted(os.listdir(at / name))
                    os.close(again)
    # Copied up, renamed, or of a name that has gone: they are the files they were.
    forget(made)
    for before, now in (
        ("written", "written"), ("moves", "a/renamed"), ("moved/inside/f", "a/b/elsewhere/inside/f"),
        ("moved", "a/b/elsewhere"), ("names/one", "names/two"), ("file", "a/b/c/linked"),
    ):  # fmt: skip
        with opened(made, early[before], os.O_PATH) as fd:
            assert os.fstat(fd).st_ino == shown[now].st_ino, before
    assert is_stale(made, early["gone"])


@needs_file_systems
def test_a_directory_leads_up_and_down(made: Union, forget: Callable[[Union], None]) -> None:
    at = Path(made.path)
    handles = [handle_of(str(at / name)) for name in ("a/b", "moved/inside")]
    numbers = [os.stat(at / name).st_ino for name in ("a", "moved")]
    forget(made)
    for handle, number, name in zip(handles, numbers, ("c/deep", "f"), strict=True):
        with opened(made, handle) as fd:
            assert os.stat("..", dir_fd=fd).st_ino == number
            os.close(os.open(name, os.O_RDONLY, dir_fd=fd))


@needs_file_systems
def test_what_is_written_is_copied_up_in_its_place(
    made: Union, place: Path, forget: Callable[[Union], None]
) -> None:
    at = Path(made.path)
    handle = handle_of(str(at / "a" / "b" / "c" / "deep"))
    forget(made)
    with opened(made, handle, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"written")
    assert (place / "up" / "a" / "b" / "c" / "deep").read_bytes() == b"written"
    assert (at / "a" / "b" / "c" / "deep").read_bytes() == b"written"


@needs_file_systems
def test_changes_after_a_survey_are_known(made: Union) -> None:
    """Files made, moved and linked after the branches were walked are found; those removed are not."""
    at = Path(made.path)
    first = handle_of(str(at / "a"))
    settle(made)
    assert not is_stale(made, first)  # the walk
    (at / "later" / "sub").mkdir(parents=True)
    (at / "later" / "sub" / "f").write_text("f")
    (at / "later" / "removed").write_text("")
    handles = [handle_of(str(at / "later" / name)) for name in ("", "sub", "sub/f", "removed")]
    settle(made)
    (at / "later").rename(at / "a" / "there")  # what is in it has no node meanwhile
    os.link(at / "a/there/sub/f", at / "a/second")
    settle(made)
    (at / "a/there/sub/f").unlink()
    (at / "a/there/removed").unlink()
    settle(made)
    assert [is_stale(made, handle) for handle in handles] == [False, False, False, True]
    with opened(made, handles[2]) as fd:
        assert os.read(fd, 9) == b"f"


NOBODYS = (0x7FFFFFFF, 0x7FFFFFFE, 0, 1 << 62 | 1, 1 << 50, 1 << 63 | 5)


def test_what_never_was(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    build(str(tmp_path / "low"), {"d": {"f": ""}})
    mounted = mount_union("low", "up")
    handle = handle_of(mounted.path)
    for number in NOBODYS:
        assert is_stale(mounted, with_number(handle, number))
    assert info.ask(mounted.path)["nodes"] == 1


def test_a_thousand(tmp_path: Path, mount_union: Callable[..., Union], forget: Callable[[Union], None]) -> None:
    build(str(tmp_path / "low"), {f"d{n}": {f"f{m}": f"{n}.{m}" for m in range(50)} for n in range(20)})
    mounted = mount_union("low", "up")
    names = [(n, m) for m in range(50) for n in range(20)]
    handles = [handle_of(f"{mounted.path}/d{n}/f{m}") for n, m in names]
    forget(mounted)
    for (n, m), handle in zip(names, handles, strict=True):
        with opened(mounted, handle) as fd:
            assert os.read(fd, 9) == f"{n}.{m}".encode()
    settle(mounted)


# In the process: what a kernel cannot be made to do at the right moment.


def test_nobody_walks_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for files that are there nor for numbers that nobody has."""
    build(str(tmp_path / "low"), {f"d{n}": {f"f{m}": "" for m in range(20)} for n in range(20)})
    numbers = [entry.stat().st_ino for n in range(20) for entry in os.scandir(tmp_path / "low" / f"d{n}")]
    scandir, listed = os.scandir, []

    def counted(path: int | str) -> object:
        listed.append(path)
        return scandir(path)

    with union(tmp_path) as fs:
        monkeypatch.setattr(os, "scandir", counted)
        with pytest.raises(OSError, match="Stale"):
            fs.lookup(0x7FFFFFFF, b".")
        walked = len(listed)
        assert walked >= 22, "low, its directories, and the upper branch"
        for number in NOBODYS:
            with pytest.raises(OSError, match="Stale"):
                fs.lookup(number, b".")
        for number in numbers:
            found = fs.lookup(number, b".")
            assert found is not None and found.ino == number
        assert len(listed) - walked < 20, "a walk lists twenty directories"
        monkeypatch.undo()


def test_two_files_of_one_number_are_nobodys(tmp_path: Path) -> None:
    """Of layers that share inodes it cannot be told which file a handle was for."""
    build(str(tmp_path / "low1"), {"one": "same"})
    (tmp_path / "low2").mkdir()
    os.link(tmp_path / "low1" / "one", tmp_path / "low2" / "two")
    number = os.stat(tmp_path / "low1" / "one").st_ino
    with union(tmp_path, "low1", "low2") as fs, pytest.raises(OSError, match="Stale"):
        fs.lookup(number, b".")


def test_a_removed_directory_has_no_parent(tmp_path: Path) -> None:
    build(str(tmp_path / "low"), {"d": {}})
    with union(tmp_path) as fs:
        number = walk(fs, "d")
        fs.rmdir(ROOT, b"d")
        with pytest.raises(FileNotFoundError):
            fs.lookup(number, b"..")
        assert fs.lookup(ROOT, b"..") is not None


def test_more_changes_than_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.union.forgotten._MOST", 10)
    build(str(tmp_path / "low"), LOWER)
    with union(tmp_path) as fs:
        for _ in range(3):
            with pytest.raises(OSError, match="Stale"):
                fs.lookup(12345678, b".")
            numbers = []
            for name in range(30):
                numbers.append(create(fs, ROOT, b"%d" % name))
                fs.forget([(numbers[-1], 1)])
            assert [attr and attr.ino for attr in (fs.lookup(number, b".") for number in numbers)] == numbers
            fs.forget((number, 1) for number in numbers)
            for name in range(30):
                fs.unlink(ROOT, b"%d" % name)
        fs.check_invariants()


def test_all_names_of_a_link_are_remembered(tmp_path: Path) -> None:
    with union(tmp_path) as fs:
        number = create(fs, ROOT, b"a")
        fs.forget([(number, 1)])
        with pytest.raises(OSError, match="Stale"):
            fs.lookup(12345678, b".")  # the walk
        for old, new in ((b"a", b"b"), (b"c", b"d")):
            assert fs.lookup(ROOT, old) is not None
            if old == b"a":
                fs.link(number, ROOT, b"c")
                fs.forget([(number, 1)])
            fs.rename(ROOT, old, ROOT, new)
            fs.forget([(number, 1)])
        fs.unlink(ROOT, b"d")
        assert fs.lookup(number, b".") is not None
        fs.unlink(ROOT, b"b")


def test_a_tree_deeper_than_the_stack(tmp_path: Path) -> None:
    with union(tmp_path) as fs:
        numbers = [ROOT]
        for _ in range(1200):
            numbers.append(fs.mkdir(numbers[-1], b"directory", 0o755, 0, 0).ino)
        file = create(fs, numbers[-1], b"f")
        write(fs, file, b"deep")
        fs.forget((number, 1) for number in (file, *reversed(numbers[1:])))
        assert fs.counts()[0] == 1
        attr = fs.lookup(file, b".")
        assert attr is not None and attr.st.st_size == 4
        fs.forget([(file, 1)])
        assert fs.counts()[0] == 1
    subprocess.run(["rm", "-rf", tmp_path / "up"], check=True)


def test_of_a_directory_the_last_name_counts(tmp_path: Path) -> None:
    with union(tmp_path) as fs:
        numbers = [fs.mkdir(ROOT, name, 0o755, 0, 0).ino for name in (b"a", b"b")]
        fs.forget((number, 1) for number in numbers)
        with pytest.raises(OSError, match="Stale"):
            fs.lookup(12345678, b".")
        # Into each other by turns: where one was, the other is.
        walk(fs, "a"), walk(fs, "b")
        fs.rename(ROOT, b"a", numbers[1], b"a")
        fs.forget((number, 1) for number in numbers)
        walk(fs, "b/a")
        fs.forget([(numbers[1], 1)])
        fs.rename(numbers[1], b"a", ROOT, b"a")
        fs.forget([(numbers[0], 1)])
        walk(fs, "a"), walk(fs, "b")
        fs.rename(ROOT, b"b", numbers[0], b"b")
        fs.forget((number, 1) for number in numbers)
        up = fs.lookup(numbers[1], b"..")
        assert up is not None and up.ino == numbers[0]
