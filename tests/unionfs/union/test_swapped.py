"""Somebody else changes a branch while it is mounted: the owner of a lower directory, or who writes to a live upper.

The server is never kept waiting by what it finds, never calls a driver, and never uses another file than the one whose
owner and mode were checked: who asks for that gets ESTALE, and a kernel then looks the path up again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.mounting import Union
from tests.unionfs.inprocess import ROOT, content, descriptors, listing, union, walk, write
from unionfs.linux import consts, files, mounts
from unionfs.union import own_mount
from unionfs.union.fs import UnionFs

pytestmark = pytest.mark.needs("root", "trusted-xattr")

SECRET = b"of somebody else"


def swap(path: Path, make: Callable[[Path], object]) -> None:
    """Put what `make` makes in place of `path`, under whose eyes it may be."""
    other = path.parent / "other"
    make(other)
    files.renameat2(-100, bytes(other), -100, bytes(path), consts.RENAME_EXCHANGE)


def make_file(path: Path) -> None:
    path.write_bytes(SECRET)
    path.chmod(0o600)
    os.utime(path, ns=(5, 5))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


INTRUDERS: dict[str, Callable[[Path], object]] = {
    "a file": make_file,
    "a fifo": lambda path: os.mkfifo(path),
    "a socket": make_socket,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a character device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "a block device": lambda path: os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 0)),
    "a directory": lambda path: path.mkdir(),
    "nothing": lambda path: path.write_bytes(b""),
}


def open_and_close(fs: UnionFs, ino: int, flags: int) -> None:
    fs.release(fs.open(ino, flags))


USES: dict[str, Callable[[UnionFs, int], object]] = {
    "read": lambda fs, ino: content(fs, ino),
    "write": lambda fs, ino: write(fs, ino, b"x"),
    "open for both": lambda fs, ino: open_and_close(fs, ino, os.O_RDWR),
    "open and truncate": lambda fs, ino: open_and_close(fs, ino, os.O_WRONLY | os.O_TRUNC),
    "open for reading and truncate": lambda fs, ino: open_and_close(fs, ino, os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda fs, ino: fs.setattr(ino, size=1),
    "truncate and clear": lambda fs, ino: fs.setattr(ino, size=1, kill_privileges=True),
    "chmod": lambda fs, ino: fs.setattr(ino, mode=0o666),
    "chown": lambda fs, ino: fs.setattr(ino, uid=5, gid=6),
    "utime": lambda fs, ino: fs.setattr(ino, atime_ns=7, mtime_ns=7),
    "stat": lambda fs, ino: fs.getattr(ino),
    "statx": lambda fs, ino: fs.statx(ino),
    "clear": lambda fs, ino: fs.kill_privileges(ino),
    "access": lambda fs, ino: fs.access(ino, os.R_OK, 5, 5),
    "list attributes": lambda fs, ino: fs.listxattr(ino),
    "get an attribute": lambda fs, ino: fs.getxattr(ino, b"user.mark"),
    "set an attribute": lambda fs, ino: fs.setxattr(ino, b"user.mark", b"1"),
    "remove an attribute": lambda fs, ino: fs.removexattr(ino, b"user.mark"),
    "get flags": lambda fs, ino: fs.get_flags(ino),
    "set flags": lambda fs, ino: fs.set_flags(ino, consts.FS_NODUMP_FL),
    "get extended flags": lambda fs, ino: fs.get_fsxattr(ino),
    "link": lambda fs, ino: fs.link(ino, ROOT, b"new"),
}


@pytest.fixture(params=["private", "as it is mounted"])
def mounts_of_branches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mounts of the branches' own, and without them, as where CAP_SYS_ADMIN is missing."""
    if request.param != "private":
        monkeypatch.setattr(own_mount, "make", lambda seen, *, read_only: None)


def state(path: Path) -> tuple[object, ...]:
    entry = path.lstat()
    return (
        *entry[:7], entry.st_mtime_ns, entry.st_ctime_ns,
        path.read_bytes() if stat.S_ISREG(entry.st_mode) else None,
        os.listxattr(path, follow_symlinks=False),
    )  # fmt: skip


@pytest.fixture
def in_time() -> Iterator[None]:
    """A server that waits fails, and does not hang the test."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("the server waits for what a branch holds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 20)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("branch", ["low", "up"])
@pytest.mark.parametrize("intruder", INTRUDERS)
def test_what_is_in_the_place_of_a_file_is_not_touched(
    tmp_path: Path, mounts_of_branches: None, in_time: None, branch: str, intruder: str
) -> None:
    for name in ("low", "up"):
        (tmp_path / name).mkdir()
    original = tmp_path / branch / "f"
    for use, operation in USES.items():
        original.write_bytes(b"ours")
        os.setxattr(original, "user.mark", b"0")
        with union(tmp_path) as fs:
            ino = walk(fs, "f")
            fds = descriptors()
            swap(original, INTRUDERS[intruder])
            if intruder == "nothing":
                original.unlink()
            before = None if intruder == "nothing" else state(original)
            with fails(errno.ESTALE):
                operation(fs, ino)
            assert descriptors() == fds, use
            assert before is None or state(original) == before, use
            if branch == "low":
                assert set(os.listdir(tmp_path / "up")) <= {".wh..wh.orph"}, use
            # A kernel looks the path up again, and finds what is there.
            again = fs.lookup(ROOT, b"f")
            if intruder == "nothing":
                assert again is None
            else:
                assert again is not None and again.ino != ino, use
                assert stat.S_IFMT(again.st.st_mode) == stat.S_IFMT(original.lstat().st_mode), use
        for path in (tmp_path / branch).iterdir():
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


@pytest.mark.parametrize("intruder", ["a file", "a fifo", "a link", "a directory", "nothing"])
def test_what_is_in_the_place_of_a_link_is_not_read(tmp_path: Path, intruder: str) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "f").symlink_to("target")
    with union(tmp_path) as fs:
        ino = walk(fs, "f")
        swap(tmp_path / "low" / "f", INTRUDERS[intruder])
        if intruder == "nothing":
            (tmp_path / "low" / "f").unlink()
        if intruder != "a link":  # one link's target says no more than another's
            with fails(errno.ESTALE):
                fs.readlink(ino)
        for change in (lambda: fs.setattr(ino, uid=5), lambda: fs.rename(ROOT, b"f", ROOT, b"g")):
            before = sorted(os.listdir(tmp_path / "low"))
            with contextlib.suppress(OSError):
                change()
            assert sorted(os.listdir(tmp_path / "low")) == before


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("intruder", ["a file", "a fifo", "a link", "a directory", "nothing"])
def test_what_is_in_the_place_of_a_directory_is_not_entered(
    tmp_path: Path, in_time: None, depth: int, intruder: str
) -> None:
    inner = tmp_path / "low" / "/".join("abc"[:depth])
    inner.mkdir(parents=True)
    (inner / "f").write_text("x")
    with union(tmp_path) as fs:
        ino = walk(fs, "/".join("abc"[:depth]))
        fds = descriptors()
        swap(inner, INTRUDERS[intruder])
        if intruder == "nothing":
            inner.unlink()
        elif intruder == "a directory":
            (inner / "f").write_bytes(SECRET)
        for use in (
            lambda: fs.lookup(ino, b"f"),
            lambda: listing(fs, ino),
            lambda: fs.create(ino, b"new", 0o644, 0, 0),
            lambda: fs.mkdir(ino, b"new", 0o755, 0, 0),
            lambda: fs.setattr(ino, mode=0o777),
            lambda: fs.unlink(ino, b"f"),
        ):
            with fails(errno.ESTALE):
                use()
        if depth == 1:
            assert descriptors() <= fds + 1  # the work area's
    assert not (tmp_path / "up" / "a" / "new").exists()


def test_a_directory_that_becomes_a_link_is_not_followed_to_its_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at it and the question whether it is opaque."""
    for name in ("up/d", "low/d", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "elsewhere" / ".wh..wh..opq").touch()
    (tmp_path / "low" / "d" / "f").touch()
    asked = []
    access = os.access

    def watch(path: bytes, mode: int, **named: bool) -> bool:
        found = access(path, mode, **named)
        asked.append(found)
        return found

    stat_ = os.stat
    swapped: list[bool] = []

    def stat_and_swap(path: bytes, **named: object) -> os.stat_result:
        entry = stat_(path, **named)  # type: ignore[arg-type]
        if path == b"d" and not swapped:
            swapped.append(True)
            swap(tmp_path / "up" / "d", lambda other: other.symlink_to(tmp_path / "elsewhere"))
        return entry

    with union(tmp_path) as fs:
        monkeypatch.setattr(os, "access", watch)
        monkeypatch.setattr(os, "stat", stat_and_swap)
        with contextlib.suppress(OSError):
            fs.lookup(ROOT, b"d")
        monkeypatch.undo()
    assert swapped and True not in asked


@pytest.mark.parametrize("before", [True, False])
def test_a_work_area_of_somebody_else(tmp_path: Path, before: bool) -> None:
    """The owner of the branch may make it before the union needs it; what is in it then is not used."""
    (tmp_path / "up").mkdir()
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "p").write_text("x")
    os.mkfifo(tmp_path / "low" / "fifo")

    def make() -> None:
        area = tmp_path / "up" / ".wh..wh.orph"
        area.mkdir()
        for number in range(1, 9):
            (area / str(number)).symlink_to("/etc/passwd")
        os.chown(area, 65534, 65534)

    if before:
        make()
    with union(tmp_path) as fs:
        if not before:
            make()
        fs.setattr(walk(fs, "fifo"), mode=0o600)
        write(fs, walk(fs, "p"), b"y")
        entry = os.stat(tmp_path / "up" / ".wh..wh.orph")
        assert (entry.st_uid, stat.S_IMODE(entry.st_mode)) == (os.geteuid(), 0o700)
    assert sorted(os.listdir(tmp_path / "up")) == ["fifo", "p"]


def test_a_work_area_swapped_in_the_moment_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def mkdir_and_swap(path: bytes, mode: int = 0o777, *, dir_fd: int) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        if path == b".wh..wh.orph":
            os.rename(path, b"mine", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            mkdir(path, 0o777, dir_fd=dir_fd)
            os.chown(path, 65534, 65534, dir_fd=dir_fd)

    (tmp_path / "low").mkdir()
    os.mkfifo(tmp_path / "low" / "fifo")
    with union(tmp_path) as fs:
        ino = walk(fs, "fifo")
        monkeypatch.setattr(os, "mkdir", mkdir_and_swap)
        with fails(errno.ESTALE):
            fs.setattr(ino, mode=0o600)
        monkeypatch.undo()


def test_inode_numbers_that_do_not_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat numbers its files anew when they come back into memory. What kind of file it is can be told all the same."""
    (tmp_path / "low").mkdir()
    for name in ("f", "g"):
        (tmp_path / "low" / name).write_text("x")
    monkeypatch.setattr(mounts, "file_system_of", lambda device: "vfat")
    with union(tmp_path) as fs:
        ino, other = walk(fs, "f"), walk(fs, "g")
        swap(tmp_path / "low" / "f", make_file)
        assert content(fs, ino) == SECRET
        (tmp_path / "low" / "other").unlink()
        swap(tmp_path / "low" / "g", INTRUDERS["a fifo"])
        with fails(errno.ESTALE):
            content(fs, other)


# With a kernel.


@pytest.fixture
def mounted(mount_union: Callable[..., Union], tmp_path: Path) -> Union:
    (tmp_path / "low" / "d").mkdir(parents=True)
    for name in ("f", "g", "d/f"):
        (tmp_path / "low" / name).write_text("ours")
    return mount_union("low", "up", options=("nodev",))


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("name", ["f", "d/f"])
def test_a_kernel_finds_what_is_there(mounted: Union, tmp_path: Path, name: str) -> None:
    shown = Path(mounted.path, name)
    assert shown.read_text() == "ours"
    swap(tmp_path / "low" / name, INTRUDERS["a fifo"])
    mounts.mount("none", mounted.path, None, consts.MS_REMOUNT | consts.MS_NODEV)  # the kernel forgets what it knows
    assert stat.S_ISFIFO(shown.stat().st_mode)
    fd = os.open(shown, os.O_RDONLY | os.O_NONBLOCK)
    assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    os.close(fd)
    assert sorted(os.listdir(mounted.path)) == sorted(["f", "g", "d"] + (["other"] if name == "f" else []))
    Path(mounted.path, "new").touch()
    shown.chmod(0o600)
    assert stat.S_ISFIFO((tmp_path / "up" / name).lstat().st_mode)


SWAPPER = """
import os, sys
from unionfs.linux import consts, files
os.chdir(sys.argv[1])
print("begins", flush=True)
while os.getppid() == int(sys.argv[2]):
    files.renameat2(-100, b"f", -100, b"p", consts.RENAME_EXCHANGE)
"""


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("branch", ["low", "up"])
@pytest.mark.parametrize("intruder", ["a character device", "a fifo", "a file", "a link"])
def test_swapped_all_the_time(mounted: Union, tmp_path: Path, branch: str, intruder: str) -> None:
    """/dev/zero in place of a file, then the file, then /dev/zero. Reading fails, or reads the file."""
    swapped = tmp_path / branch / "f"
    swapped.write_text("ours")
    INTRUDERS[intruder](tmp_path / branch / "p")
    if intruder == "a file":
        (tmp_path / branch / "p").chmod(0o644)
    allowed = {b"ours", SECRET} if intruder == "a file" else {b"ours"}
    if intruder == "a link":
        allowed.add(Path("/etc/passwd").read_bytes()[:64])  # who follows the link is the reader
    with subprocess.Popen(
        [sys.executable, "-c", SWAPPER, swapped.parent, str(os.getpid())], stdout=subprocess.PIPE
    ) as swapper:
        try:
            assert swapper.stdout is not None and swapper.stdout.readline()
            for _ in range(300):
                try:
                    fd = os.open(os.path.join(mounted.path, "f"), os.O_RDONLY | os.O_NONBLOCK)
                except OSError as error:
                    assert error.errno in (errno.ESTALE, errno.EACCES, errno.ENXIO, errno.EIO), error
                    continue
                try:
                    with contextlib.suppress(OSError):
                        if stat.S_ISREG(os.fstat(fd).st_mode):
                            assert os.read(fd, 64) in allowed
                finally:
                    os.close(fd)
        finally:
            swapper.kill()


HOLDER = """
import fcntl, os, signal, sys
def told(number, frame):
    print("told", flush=True)
signal.signal(signal.SIGIO, told)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("use", ["read", "write"])
def test_a_lease_keeps_nobody_waiting_but_who_opens_the_file(mounted: Union, tmp_path: Path, use: str) -> None:
    """Its holder is told, and it is opened once he has let go."""
    read: list[str] = []

    def open_it() -> None:
        shown = Path(mounted.path, "f")
        if use == "write":
            with shown.open("a") as file:
                file.write("!")
        read.append(shown.read_text())

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "low" / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        opener = threading.Thread(target=open_it)
        opener.start()
        assert holder.stdout.readline() == "told\n"
        assert Path(mounted.path, "g").read_text() == "ours"
        Path(mounted.path, "new").touch()
        assert not read
        holder.stdin.write("\n")
        holder.stdin.close()
        opener.join(20)
        assert read == ["ours!" if use == "write" else "ours"]


def test_a_lease_that_is_never_given_up(tmp_path: Path) -> None:
    """The kernel's time is the bound."""
    from unionfs.union.again import Again

    error = OSError(errno.EWOULDBLOCK, "")
    again = Again(lambda: False)
    assert again.cures(error) and 0 < again.pause < 1
    again._deadline = 1e-9
    assert not again.cures(error)


def test_descriptors_are_given_back_once(tmp_path: Path) -> None:
    from unionfs.union.again import Again

    (tmp_path / "low" / "d").mkdir(parents=True)
    (tmp_path / "low" / "d" / "f").touch()
    error = OSError(errno.EMFILE, "")
    with union(tmp_path) as fs:
        walk(fs, "d/f")
        fds = descriptors()
        again = Again(fs.give_back_descriptors)
        assert again.cures(error) and again.pause == 0
        assert descriptors() < fds
        walk(fs, "d/f")
        assert not again.cures(error)
        assert Again(fs.give_back_descriptors).cures(error)
        assert not Again(fs.give_back_descriptors).cures(error)


def test_a_marker_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    """It marks, as one of any kind does, and whatever it leads to: nothing is asked about that."""
    for name in ("up/d", "low/d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "low" / "d" / "f").touch()
    (tmp_path / "up" / "d" / ".wh..wh..opq").symlink_to(tmp_path / "nowhere")
    with union(tmp_path) as fs:
        directory = fs.lookup(1, b"d")
        assert directory is not None
        assert fs.lookup(directory.ino, b"f") is None
