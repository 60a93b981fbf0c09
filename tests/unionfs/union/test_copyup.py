"""Copy-up: everything is kept, nothing else changes, it happens once, and others do not wait for it."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.acl import ACCESS, DEFAULT, FOR_USER, HANDED_DOWN
from tests.contracts.posix.case import content, fails, opened, put
from tests.contracts.posix.xattrs import CAPABILITY
from tests.mounting import Union
from tests.trees import Dir, File, HardLink, Special, Symlink, Tree, assert_same, build, read, xattrs
from unionfs.linux import consts, mounts

pytestmark = [pytest.mark.needs("fuse", "user-xattr", "trusted-xattr")]

MTIME = 1_600_000_000_123_456_789
LOWER: Tree = {
    "file": File("data" * 1000, mode=0o4751, uid=12, gid=34, mtime_ns=MTIME,
                 xattrs={"user.a": b"1", "trusted.b": bytes(range(256)), "security.capability": CAPABILITY}),
    "acl": File("x", mode=0o660, uid=1, mtime_ns=MTIME, xattrs={ACCESS: FOR_USER}),
    "empty": File("", mode=0o000, mtime_ns=MTIME),
    "dir": Dir({"sub": Dir({"deep": File("deep", mtime_ns=MTIME)}, mode=0o2711, uid=5, gid=6, mtime_ns=MTIME)},
               mode=0o1770, uid=7, xattrs={"user.d": b"dir", DEFAULT: HANDED_DOWN}, mtime_ns=MTIME),
    "link": Symlink("nowhere"),
    "fifo": Special(mode=0o622, uid=9, mtime_ns=MTIME),
    "null": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o606, mtime_ns=MTIME),
    "socket": Special(type=stat.S_IFSOCK, mode=0o777, mtime_ns=MTIME),
}


@pytest.fixture
def union(mount_union: Callable[..., Union], tmp_path: Path) -> Union:
    """LOWER below an empty upper branch."""
    build(str(tmp_path / "low"), LOWER)
    return mount_union("low", "up")


def numbers(union: Union) -> dict[str, int]:
    return {path: os.lstat(os.path.join(union.path, path)).st_ino for path in read(union.path)}


def test_everything_is_kept(union: Union) -> None:
    """Each entry is copied up by what changes least: an open for writing, its own times set again."""
    before, inodes = read(union.path), numbers(union)
    for path, found in before.items():
        full = os.path.join(union.path, path)
        if found.type == stat.S_IFREG:
            with opened(full, os.O_WRONLY):
                pass
        elif path != "." and found.type != stat.S_IFDIR:
            os.utime(full, ns=(os.lstat(full).st_atime_ns, found.mtime_ns or 0), follow_symlinks=False)
    assert_same(before, read(union.path), "after the copy-ups")
    assert numbers(union) == inodes
    upper = read(union.upper)
    for path, found in before.items():
        if path != ".":
            assert upper[path].content == found.content
            assert upper[path].mode == found.mode
    union.remount()
    assert_same(before, read(union.path), "after a remount")
    assert numbers(union) == inodes


def test_directories_keep_everything(union: Union) -> None:
    """A directory is copied up with its default ACL, attributes and times, and shows no trace in its parent's times."""
    paths = [union.path, f"{union.path}/dir", f"{union.path}/dir/sub"]
    before = [(os.stat(path).st_mtime_ns, os.stat(path).st_ino, xattrs(path)) for path in paths]
    put(f"{union.path}/dir/sub/deep", b"changed", 0)
    assert [(os.stat(path).st_mtime_ns, os.stat(path).st_ino, xattrs(path)) for path in paths] == before
    for name, mode in (("dir", 0o1770), ("dir/sub", 0o2711)):
        assert stat.S_IMODE(os.stat(f"{union.upper}/{name}").st_mode) == mode
    union.remount()
    assert [(os.stat(path).st_mtime_ns, os.stat(path).st_ino, xattrs(path)) for path in paths] == before


def test_holes_are_kept(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    low = tmp_path / "low"
    low.mkdir()
    with opened(str(low / "sparse"), os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"a" * 4096, 0)
        os.pwrite(fd, b"b" * 4096, 16 << 20)
        os.ftruncate(fd, 64 << 20)
    before = content(str(low / "sparse"))
    union = mount_union("low", "up")
    with opened(f"{union.path}/sparse", os.O_RDWR) as fd:
        os.pwrite(fd, b"c", 32 << 20)
    assert content(f"{union.path}/sparse") == before[: 32 << 20] + b"c" + before[(32 << 20) + 1 :]
    with opened(f"{union.upper}/sparse", os.O_RDONLY) as fd:
        assert os.fstat(fd).st_blocks * 512 <= 4 << 20
        starts, position = [], 0
        while position < 64 << 20:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                break
            starts.append(position)
            position = os.lseek(fd, position, os.SEEK_HOLE)
    assert starts == [0, 16 << 20, 32 << 20]


def test_truncating_opens_copy_no_data(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """On an upper branch that could not hold the data."""
    build(str(tmp_path / "low"), {"big": b"x" * (8 << 20), "big2": b"x" * (8 << 20), "big3": b"x" * (8 << 20)})
    upper = tmp_path / "up"
    upper.mkdir()
    mounts.mount("small", str(upper), "tmpfs", 0, "size=1m")
    try:
        union = mount_union("low", "up")
        with opened(f"{union.path}/big", os.O_WRONLY | os.O_TRUNC) as fd:
            os.write(fd, b"short")
        assert content(f"{union.path}/big") == b"short"
        os.truncate(f"{union.path}/big2", 0)
        os.truncate(f"{union.path}/big3", 5)
        assert os.stat(f"{union.path}/big2").st_size == 0
        assert content(f"{union.path}/big3") == b"xxxxx"
        union.unmount()
    finally:
        mounts.umount2(str(upper), consts.MNT_DETACH)


LINKED: Tree = {"a": File("linked", mode=0o640), "b": HardLink("a"), "dir": {"c": HardLink("../a")}, "other": "single"}


def test_hard_links_stay_one_file(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Also over a remount, and when the next name is only touched after it (pseudo-links)."""
    build(str(tmp_path / "low"), LINKED)
    union = mount_union("low", "up")
    names = [f"{union.path}/{name}" for name in ("a", "b", "dir/c")]
    ino = os.stat(names[0]).st_ino

    def one_file() -> tuple[set[int], set[int], set[bytes]]:
        return ({os.stat(n).st_ino for n in names}, {os.stat(n).st_nlink for n in names}, {content(n) for n in names})

    put(names[1], b"by b", 0)
    assert one_file() == ({ino}, {3}, {b"by bed"})
    union.remount()
    assert one_file() == ({ino}, {3}, {b"by bed"})
    put(names[2], b"!", os.O_APPEND)
    os.chmod(names[0], 0o600)
    os.link(names[0], f"{union.path}/dir/d")
    names.append(f"{union.path}/dir/d")
    assert one_file() == ({ino}, {4}, {b"by bed!"})
    union.remount()
    assert one_file() == ({ino}, {4}, {b"by bed!"})
    os.unlink(names.pop(1))
    union.remount()
    assert one_file() == ({ino}, {3}, {b"by bed!"})
    for name in names:
        os.unlink(name)
    assert sorted(read(union.path)) == [".", "dir", "other"]
    union.remount()
    assert sorted(read(union.path)) == [".", "dir", "other"]
    union.unmount()
    links = f"{union.upper}/.wh..wh.plnk"
    assert not os.path.isdir(links) or os.listdir(links) == [], "a pseudo-link outlives its file's names"


@pytest.mark.parametrize("change", ["link", "unlink", "rename", "write", "unlink both"])
@pytest.mark.parametrize("kind", [File("linked"), Symlink("nowhere")], ids=["file", "symlink"])
def test_a_copy_below_that_only_its_key_names(
    mount_union: Callable[..., Union], tmp_path: Path, change: str, kind: File | Symlink
) -> None:
    """Its names are in a branch further down, and it is copied up once more."""
    build(str(tmp_path / "low"), {"a": kind, "b": HardLink("a"), "c": HardLink("a")})
    union = mount_union("low", "middle")
    os.unlink(f"{union.path}/c")
    union.unmount()
    union = mount_union("low", "middle", "up")
    a, b, z = (f"{union.path}/{name}" for name in "abz")
    names = [a, b]
    if change == "link":
        os.link(a, z, follow_symlinks=False)
        names.append(z)
    elif change == "rename":
        os.rename(a, z)
        names[0] = z
    elif change == "write":
        os.utime(a, (5, 5), follow_symlinks=False)
    else:
        os.unlink(names.pop(0))
        if change == "unlink both":
            os.unlink(names.pop())

    def shown() -> tuple[list[str], set[tuple[int, int]]]:
        entries = [os.lstat(name) for name in names]
        return sorted(os.listdir(union.path)), {(entry.st_ino, entry.st_nlink) for entry in entries}

    there, files = shown()
    assert there == sorted(map(os.path.basename, names))
    assert len(files) == min(1, len(names)) and {count for _, count in files} == ({len(names)} - {0})
    union.remount()
    assert shown() == (there, files)
    union.unmount()
    links = f"{union.upper}/.wh..wh.plnk"
    assert names or not os.path.isdir(links) or not os.listdir(links)


def test_a_descriptor_and_a_map_from_before_see_later_writes(
    mount_union: Callable[..., Union], tmp_path: Path
) -> None:
    """Without `posix` the direct transport decides otherwise: test_passthrough.py."""
    build(str(tmp_path / "low"), LOWER)
    path = f"{mount_union('low', 'up', options=('posix',)).path}/file"
    with (
        opened(path, os.O_RDONLY) as fd,
        mmap.mmap(fd, 4000, mmap.MAP_SHARED, mmap.PROT_READ) as view,
        opened(path, os.O_RDWR) as writer,
    ):
        assert view[:4] == b"data"
        os.pwrite(writer, b"DATA", 0)
        assert os.pread(fd, 4, 0) == b"DATA"
        assert view[:4] == b"DATA"
        os.ftruncate(writer, 2000)
        assert os.fstat(fd).st_size == 2000
        os.fchmod(writer, 0o600)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 4 MiB on a loop device at tmp_path/up: its limits are a real file system's."""
    image, upper = tmp_path / "image", tmp_path / "up"
    upper.mkdir()
    image.touch()
    os.truncate(image, 4 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, upper], check=True)
    os.rmdir(upper / "lost+found")
    yield upper
    subprocess.run(["umount", upper], check=True)


@pytest.mark.needs("loop", "program:mkfs.ext4")
def test_a_full_disk_half_way(small: Path, mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """The caller gets ENOSPC, the upper branch is as it was, and the union goes on."""
    build(str(tmp_path / "low"), {"big": b"b" * (6 << 20), "d": {"big": b"d" * (6 << 20)}, "small": "s"})
    union = mount_union("low", "up")
    put(f"{union.path}/small", b"copied")
    os.mkdir(f"{union.path}/new")
    before, seen, free = read(str(small)), read(union.path), os.statvfs(small).f_bfree
    attempts: list[Callable[[], object]] = [
        lambda: put(f"{union.path}/big", b"x", 0),
        lambda: os.chmod(f"{union.path}/big", 0o600),
        lambda: os.link(f"{union.path}/big", f"{union.path}/new/link"),
        lambda: os.rename(f"{union.path}/big", f"{union.path}/new/big"),
        lambda: os.rename(f"{union.path}/d", f"{union.path}/new/d"),
        lambda: os.setxattr(f"{union.path}/big", "user.a", b"1"),
    ]
    for attempt in attempts:
        with fails(errno.ENOSPC):
            attempt()
    assert_same(seen, read(union.path), "after the failures")
    after = read(str(small))
    # What a copy-up of a directory's content got done may stay: the union shows no difference.
    assert_same(before, {path: found for path, found in after.items() if path.split("/")[0] != "d"}, "in the upper")
    assert free - os.statvfs(small).f_bfree < 64, "a failed copy-up left its data behind"
    put(f"{union.path}/after", b"still works")
    assert content(f"{union.path}/after") == b"still works"
    with opened(f"{union.path}/fill", os.O_CREAT | os.O_WRONLY) as fd, fails(errno.ENOSPC):
        while True:
            os.write(fd, b"f" * 100_000)
    os.unlink(f"{union.path}/fill")
    union.unmount()


class Racer:
    """A forked process that overwrites a hundred bytes of each file the moment it is told to."""

    def __init__(self, path: str, digit: bytes, rounds: int) -> None:
        start, self._go = os.pipe()
        self._answers, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                for number in range(rounds):
                    os.read(start, 1)
                    fd = os.open(f"{path}/file{number}", os.O_WRONLY)
                    os.pwrite(fd, digit * 100, int(digit) * 100)
                    os.write(answer, os.fstat(fd).st_ino.to_bytes(8, "little"))
                    os.close(fd)
                status = 0
            finally:
                os._exit(status)
        os.close(start)
        os.close(answer)

    def go(self) -> None:
        os.write(self._go, b"!")

    def answer(self) -> int:
        """The inode number it saw."""
        return int.from_bytes(os.read(self._answers, 8), "little")

    def join(self) -> int:
        os.close(self._go)
        os.close(self._answers)
        return os.waitpid(self._pid, 0)[1]


def test_two_processes_copy_up_the_same_file(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Both open it for writing at once, many times over: one copy, and both writes are in it."""
    rounds, size = 60, 300_000
    build(str(tmp_path / "low"), {f"file{number}": b"." * size for number in range(rounds)})
    union = mount_union("low", "up")
    inodes = [os.stat(f"{union.path}/file{number}").st_ino for number in range(rounds)]
    racers = [Racer(union.path, digit, rounds) for digit in (b"1", b"2")]
    for number in range(rounds):
        for racer in racers:
            racer.go()
        assert [racer.answer() for racer in racers] == [inodes[number]] * 2
    assert [racer.join() for racer in racers] == [0, 0]
    expected = b"." * 100 + b"1" * 100 + b"2" * 100 + b"." * (size - 300)
    for number in range(rounds):
        assert content(f"{union.path}/file{number}") == expected, f"file{number} is torn"
        assert content(f"{union.upper}/file{number}") == expected
    union.unmount()
    assert sorted(name for name in os.listdir(union.upper) if not name.startswith(".wh.")) == sorted(
        f"file{number}" for number in range(rounds))


# What another thread does to `case/dir/big` while it is copied up, and where the file then is (None: nowhere).
MEANWHILE: dict[str, tuple[Callable[[str], object], str | None]] = {
    "rename its directory": (lambda case: os.rename(f"{case}/dir", f"{case}/dir2"), "dir2/big"),
    "rename it": (lambda case: os.rename(f"{case}/dir/big", f"{case}/moved"), "moved"),
    "unlink it": (lambda case: os.unlink(f"{case}/dir/big"), None),
    "replace it": (lambda case: os.rename(f"{case}/other", f"{case}/dir/big"), None),
    "link to it": (lambda case: os.link(f"{case}/dir/big", f"{case}/link"), "link"),
    "chmod it": (lambda case: os.chmod(f"{case}/dir/big", 0o600), "dir/big"),
    "write to it": (lambda case: put(f"{case}/dir/big", b"second", 0), "dir/big"),
}


def test_changes_during_a_copy_up(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """They wait for it or find their way past it; whoever opened the file writes to it, wherever it is by then."""
    block = os.urandom(1 << 20)
    for name in MEANWHILE:
        build(str(tmp_path / "low" / name), {"dir": {"big": b"", "small": "s"}, "other": "other"})
        with opened(str(tmp_path / "low" / name / "dir" / "big"), os.O_WRONLY) as fd:
            for _ in range(32):
                os.write(fd, block)
    union = mount_union("low", "up")
    for name, (change, place) in MEANWHILE.items():
        case = f"{union.path}/{name}"
        # Looked up before the race: whichever comes first, the opener has the file.
        with opened(f"{case}/dir/big", os.O_PATH) as file:
            started = threading.Event()
            results: list[bytes] = []

            def write(file: int = file, started: threading.Event = started, results: list[bytes] = results) -> None:
                started.set()
                with opened(f"/proc/self/fd/{file}", os.O_RDWR) as fd:
                    os.pwrite(fd, b"written", 100)
                    results.append(os.pread(fd, 7, 100) + os.pread(fd, 10, 31 << 20))

            thread = threading.Thread(target=write)
            thread.start()
            started.wait()
            change(case)
            thread.join()
            assert results == [b"written" + block[:10]], name
        if place is not None:
            data = content(f"{case}/{place}")
            assert data[100:107] == b"written", name
            assert (len(data), data[-(1 << 20) :]) == (32 << 20, block), name
    before = read(union.path)
    union.remount()
    assert_same(before, read(union.path), "after a remount")
