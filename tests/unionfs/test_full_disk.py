"""A disk with no room left, no inodes left, or a quota that is used up: what fails says so and has changed nothing,
what was there is there, and with room again all goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from drivers.disk.loop import attached
from tests.mounting import Union
from tests.trees import Entry, File, HardLink, Symlink, Tree, assert_same, build, read
from unionfs.linux import mounts

pytestmark = [
    pytest.mark.needs("fuse", "loop", "user-xattr", "trusted-xattr"), pytest.mark.parametrize("transport", ["auto"]),
]  # fmt: skip

MIB = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
LARGE = os.urandom(MIB)


class Kind(NamedTuple):
    """How a file system is made and mounted, its size in MiB, and what runs out there."""

    make: tuple[str, ...]
    size: int
    options: str = ""
    runs_out: str = "space"


DISKS = {
    "ext4": Kind(("mkfs.ext4", "-q", "-m0"), 24),
    "xfs": Kind(("mkfs.xfs", "-q", "--unsupported"), 32),
    "btrfs": Kind(("mkfs.btrfs", "-q", "--mixed"), 40),
    "tmpfs": Kind((), 12, "size=12m"),
    "inodes of ext4": Kind(("mkfs.ext4", "-q", "-N128"), 24, runs_out="inodes"),
    "inodes of tmpfs": Kind((), 12, "nr_inodes=120", "inodes"),
    "quota of btrfs": Kind(("mkfs.btrfs", "-q"), 256, runs_out="quota"),
}


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """What runs out there, and where it is mounted."""
    kind = DISKS[request.param]
    path = tmp_path / "disk"
    path.mkdir()
    with contextlib.ExitStack() as stack:
        source, fstype = "full", request.param.split()[-1]
        if kind.make:
            image = tmp_path / "image"
            image.touch()
            os.truncate(image, kind.size * MIB)
            try:
                subprocess.run([*kind.make, image], check=True, capture_output=True)
            except FileNotFoundError:
                pytest.skip(f"{kind.make[0]} is not installed")
            source = stack.enter_context(attached(str(image)))
        mounts.mount(source, str(path), fstype, 0, kind.options or None)
        stack.callback(mounts.umount2, str(path))
        for name in ("low", "up"):
            if kind.runs_out == "quota":
                subprocess.run(["btrfs", "-q", "subvolume", "create", path / name], check=True)
            else:
                (path / name).mkdir()
        yield kind.runs_out, path


def lower() -> Tree:
    tree: dict[str, Entry] = {
        "large": File(LARGE, mode=0o640, uid=3, xattrs={"user.a": b"1"}),
        "twin": HardLink("large"),
        "tree": {"deep": {"large": LARGE, "small": "s"}, "link": Symlink("deep")},
        "over": "over", "kept": "kept", "empty": {},
    }  # fmt: skip
    tree["many"] = {f"file-{number}": "x" for number in range(8)}
    return tree


def limit(size: str, disk: Path) -> None:
    """By the number of the group: through the subvolume itself the change would count to what it is to change."""
    shown = subprocess.run(["btrfs", "inspect-internal", "rootid", disk / "up"], check=True, capture_output=True)
    group = f"0/{int(shown.stdout)}"
    subprocess.run(["btrfs", "qgroup", "limit", size, group, disk], check=True, capture_output=True)


def make_full(runs_out: str, disk: Path) -> None:
    """Beside the branches, so that the union has no hand in it; of a quota, what is left of it."""
    if runs_out == "quota":
        subprocess.run(["btrfs", "quota", "enable", disk], check=True, capture_output=True)
        limit("512k", disk)
        return
    (disk / "filler").mkdir()
    with contextlib.suppress(OSError):
        for number in range(10**6 if runs_out == "inodes" else 0):
            (disk / "filler" / str(number)).touch()
    if runs_out == "inodes":
        return
    with open(disk / "filler/f", "wb", buffering=0) as file:
        for size in (MIB, 64 << 10, 4 << 10, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())


def make_room(runs_out: str, disk: Path) -> None:
    if runs_out == "quota":
        limit("none", disk)
        return
    subprocess.run(["rm", "-r", disk / "filler"], check=True)
    subprocess.run(["sync", "-f", disk], check=True)  # xfs gives back what was allocated ahead


def write_at_end(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"more")
    finally:
        os.close(fd)


# Those that copy the large file up cannot be done in a space that is used up.
COPYING: dict[str, Callable[[str], object]] = {
    "append": lambda top: write_at_end(f"{top}/large"),
    "chmod": lambda top: os.chmod(f"{top}/large", 0o600),
    "set an attribute": lambda top: os.setxattr(f"{top}/large", "user.b", b"2"),
    "link": lambda top: os.link(f"{top}/large", f"{top}/third"),
    "rename": lambda top: os.rename(f"{top}/large", f"{top}/moved"),
    "rename over": lambda top: os.rename(f"{top}/large", f"{top}/over"),
    "unlink a hard link": lambda top: os.unlink(f"{top}/twin"),
    "rename a directory": lambda top: os.rename(f"{top}/tree", f"{top}/moved-tree"),
    "rename a directory over": lambda top: os.rename(f"{top}/tree", f"{top}/empty"),
}
SMALL: dict[str, Callable[[str], object]] = {
    "create": lambda top: os.close(os.open(f"{top}/new", os.O_CREAT | os.O_WRONLY)),
    "mkdir": lambda top: os.mkdir(f"{top}/new-dir"),
    "mkdir below a lower directory": lambda top: os.mkdir(f"{top}/tree/deep/new-dir"),
    "symlink": lambda top: os.symlink("x" * 1000, f"{top}/new-link"),
    "mkfifo": lambda top: os.mkfifo(f"{top}/new-fifo"),
    "unlink": lambda top: os.unlink(f"{top}/many/file-0"),
    "rmdir": lambda top: os.rmdir(f"{top}/empty"),
    "rename a small file": lambda top: os.rename(f"{top}/many/file-1", f"{top}/many/new"),
    "exchange a mode": lambda top: os.chmod(f"{top}/many/file-2", 0o600),
    "a large attribute": lambda top: os.setxattr(f"{top}/many", "user.large", b"x" * 3000),
}


def attempt(union: Union, name: str, change: Callable[[str], object]) -> bool:
    """Whether it was done. If it was not, for want of room and nothing else, nothing has changed."""
    before = read(union.path)
    try:
        change(union.path)
    except OSError as error:
        assert error.errno in FULL, f"{name}: {error}"
        assert_same(before, read(union.path), f"after a {name} that failed")
        return False
    return True


def test_what_fails_has_changed_nothing(
    tmp_path: Path, disk: tuple[str, Path], mount_union: Callable[..., Union], transport: str
) -> None:
    runs_out, place = disk
    build(str(place / "low"), lower())
    union = mount_union("disk/low", "disk/up")
    synced = f"{union.path}/synced"
    Path(synced).write_bytes(LARGE[:100_000])
    Path(union.path, "spare").write_bytes(b"s" * 100_000)
    subprocess.run(["sync", "-f", place], check=True)
    below = read(str(place / "low"))
    make_full(runs_out, place)
    done = [name for name, change in COPYING.items() if attempt(union, name, change)]
    assert not done
    for name, change in SMALL.items():
        attempt(union, name, change)
    os.unlink(f"{union.path}/spare")  # what is in the upper branch can go, which is how there is room again
    assert Path(synced).read_bytes() == LARGE[:100_000]
    assert read(str(place / "low")) == below, "the lower branch has changed"
    seen = read(union.path)
    union.unmount()
    make_room(runs_out, place)
    union.mount()  # it takes an inode or two
    assert_same(seen, read(union.path), "after a remount")
    for name, change in COPYING.items():
        if name not in ("link", "rename over", "unlink a hard link", "rename a directory over"):
            assert attempt(union, name, change), name
    assert stat.S_IMODE(os.stat(f"{union.path}/moved").st_mode) == 0o600
    assert Path(union.path, "moved").read_bytes() == LARGE + b"more"
    seen = read(union.path)
    union.remount()
    assert_same(seen, read(union.path), "after a remount with room")
    assert read(str(place / "low")) == below


def test_as_many_as_there_is_room_for(
    tmp_path: Path, disk: tuple[str, Path], mount_union: Callable[..., Union], transport: str
) -> None:
    """Files are made until none can be, each whole or not there; they can all be removed, and made again."""
    runs_out, place = disk
    union = mount_union("disk/low", "disk/up")
    if runs_out == "quota":
        make_full(runs_out, place)

    def make_all() -> int:
        content = b"" if runs_out == "inodes" else LARGE[:100_000]
        for number in range(10**6):
            fd = -1
            try:
                fd = os.open(f"{union.path}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                left = content
                while left:
                    left = left[os.write(fd, left) :]
                os.fsync(fd)
            except OSError as error:
                assert error.errno in FULL, error
                return number
            finally:
                if fd >= 0:
                    os.close(fd)
        raise AssertionError("it is never full")

    counts = []
    for _ in range(2):
        made = make_all()
        names = {str(number) for number in range(made)}
        assert names <= set(os.listdir(union.path)) <= names | {str(made)}
        gone = {"0", "1", "2", "3"}
        for name in (*gone, str(made)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{union.path}/{name}")
        subprocess.run(["sync", "-f", place], check=True)
        union.remount()  # it takes an inode or two
        assert set(os.listdir(union.path)) == names - gone
        for name in os.listdir(union.path):
            if runs_out != "inodes":
                assert Path(union.path, name).read_bytes() == LARGE[:100_000]
            os.unlink(f"{union.path}/{name}")
        subprocess.run(["sync", "-f", place], check=True)
        counts.append(made)
    assert counts[0] > (3 if runs_out == "quota" else 40)
    assert counts[1] > counts[0] // 2
    assert [name for name in os.listdir(place / "up") if not name.startswith(".wh.")] == []
