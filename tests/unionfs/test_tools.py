"""What people do to trees all day, on trees of lower branches: copy them with all that files are, watch them, send
descriptors through them, make and remove directories by the thousand."""

from __future__ import annotations

import mmap
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_uint32
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.disk import loop
from tests.mounting import Union, mounted
from tests.trees import Dir, File, HardLink, Special, Symlink, Tree, assert_same, assert_tree, build, read
from unionfs.linux import libc

pytestmark = pytest.mark.needs("fuse", "trusted-xattr", "user-xattr")

ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000000ffffffff")


def everything(mark: str, time: int = 10**18) -> Tree:
    """`time` in ns, of what has no content: rsync takes things of one second for the same."""
    return {
        "file": File(mark * 5000, mode=0o4750, uid=5, gid=6, mtime_ns=time),
        "links": {"a": File(f"{mark} linked"), "b": HardLink("a")},
        "attributes": File(mark, xattrs={"user.a": mark.encode(), "trusted.b": b"\0", "system.posix_acl_access": ACL}),
        "sticky": Dir({"deep": {"f": mark}}, mode=0o1777, xattrs={"user.d": b"d"}),
        "link": Symlink(target="nowhere/at all", mtime_ns=time),
        "fifo": Special(mtime_ns=time),
        "zero": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 5), mtime_ns=time),
    }


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["rsync", "-aHAX", "--checksum", "--delete"], marks=pytest.mark.needs("program:rsync")),
        ["cp", "-aT"],
    ],
    ids=["rsync", "cp"],
)
def test_copied_with_all_that_they_are(mount_union: Callable[..., Union], tmp_path: Path, command: list[str]) -> None:
    """From a lower branch into the union, over what another lower branch has there, and out again."""
    build(str(tmp_path / "low0"), {"source": everything("new")})
    build(str(tmp_path / "low1"), {"target": everything("old", 10**17)})
    union = mount_union("low0", "low1", "up")
    slash = "/" if command[0] == "rsync" else ""
    for source, target in (("source", "target"), ("target", "again")):
        subprocess.run([*command, f"{union.path}/{source}{slash}", f"{union.path}/{target}"], check=True)
    union.remount()
    wanted = read(f"{union.path}/source")
    for name in ("target", "again"):
        assert_same(wanted, read(f"{union.path}/{name}"), name)
    assert_tree(str(tmp_path / "low1"), {"target": everything("old", 10**17)})


@pytest.mark.parametrize("transport", ["auto"])
def test_three_thousand_directories(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Made and removed in a merged directory."""
    build(str(tmp_path / "low0"), {"d": {"a": {"f": ""}, "kept": {}}})
    build(str(tmp_path / "low1"), {"d": {"b": {}}})
    union = mount_union("low0", "low1", "up")
    for number in range(3000):
        os.mkdir(f"{union.path}/d/{number}")
    assert len(os.listdir(f"{union.path}/d")) == 3003
    for number in range(3000):
        os.rmdir(f"{union.path}/d/{number}")
    union.remount()
    assert sorted(os.listdir(f"{union.path}/d")) == ["a", "b", "kept"]
    assert os.listdir(tmp_path / "up" / "d") == []


STRANGE = (
    "colon:comma,equals=", "back\\slash", 'quote"\'', "new\nline", " space ", "tab\t", "-dash", "%s", "~", "$(x)", "*",
    "é", "e\u0301", "\udcff\udcfe", "\x01", "😀", "ß" * 120,
)  # fmt: skip


def test_strange_characters_in_paths(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """In names below, and in those of the branches themselves."""
    for number, name in enumerate(STRANGE):
        build(str(tmp_path / f"l,o:w {number % 2}\n"), {name: {name: name.encode("utf-8", "surrogateescape")}})
    union = mount_union("l,o:w 0\n", "l,o:w 1\n", "u:p, ü")
    assert sorted(os.listdir(union.path)) == sorted(STRANGE)
    for name in STRANGE:
        path = f"{union.path}/{name}"
        with open(f"{path}/{name}", "ab") as file:
            file.write(b" and more")
        os.rename(f"{path}/{name}", f"{path}/{name[::-1]}.")
        os.symlink(name, f"{path}/link")
    union.remount()
    for name in STRANGE:
        found = f"{union.path}/{name}"
        assert sorted(os.listdir(found)) == sorted([f"{name[::-1]}.", "link"])
        assert os.readlink(f"{found}/link") == name
        assert Path(found, f"{name[::-1]}.").read_bytes() == name.encode("utf-8", "surrogateescape") + b" and more"


@pytest.mark.parametrize("transport", ["auto"])
def test_a_tree_of_six_hundred_levels_is_moved(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """A lower one, that is copied for it; longer than a path may be, too."""
    levels = 600
    (tmp_path / "low").mkdir()
    with _down(tmp_path / "low", "top", levels, make=True) as fd:
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    union = mount_union("low", "up")
    os.rename(f"{union.path}/top", f"{union.path}/moved")
    union.remount()
    assert os.listdir(union.path) == ["moved"]
    with _down(Path(union.path), "moved", levels) as fd:
        assert os.listdir(fd) == ["f"]
    subprocess.run(["rm", "-r", f"{union.path}/moved"], check=True)
    assert os.listdir(union.path) == []
    subprocess.run(["rm", "-r", tmp_path / "low" / "top"], check=True)  # deeper than pytest's own removal goes


@contextmanager
def _down(root: Path, top: str, levels: int, *, make: bool = False) -> Iterator[int]:
    """A descriptor of the innermost of so many directories, each in the other."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for level in range(levels):
            name = top if level == 0 else "directory"
            if make:
                os.mkdir(name, dir_fd=fd)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


@pytest.mark.needs("loop", "program:mksquashfs")
def test_a_compressed_lower_branch(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """squashfs, on a loop device: all of it is copied up as from any other."""
    build(str(tmp_path / "source"), everything("packed"))
    subprocess.run(["mksquashfs", tmp_path / "source", tmp_path / "image", "-quiet", "-no-progress"], check=True)
    with loop.attached(str(tmp_path / "image")) as device, mounted([Mount("squashfs", device, ("ro",))]) as low:
        wanted = read(str(tmp_path / "source"))
        union = mount_union(f"{low}=rr", "up")
        assert_same(read(low), read(union.path), "before")
        for name in ("file", "links/a", "attributes", "sticky/deep/f"):
            with open(f"{union.path}/{name}", "r+b") as file:
                file.write(file.read(1))
        os.rename(f"{union.path}/sticky", f"{union.path}/moved")
        os.rename(f"{union.path}/moved", f"{union.path}/sticky")
        union.remount()
        found = read(union.path)
        assert found.keys() == wanted.keys()
        assert found["links/a"].content == found["links/b"].content == b"pp" + b"packed linked"[2:]
        assert os.stat(f"{union.path}/links/a").st_nlink == 2
        assert os.getxattr(f"{union.path}/attributes", "user.a") == b"packed"
        union.unmount()


_inotify_init = libc.bind("inotify_init1", c_int)
_inotify_add_watch = libc.bind("inotify_add_watch", c_int, c_char_p, c_uint32)
MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x40, 0x80, 0x100, 0x200  # linux/inotify.h


def test_a_watched_directory(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Whoever watches a lower directory hears of every change, also of the first to each file."""
    build(str(tmp_path / "low"), {"d": {"a": "a", "b": "b", "c": {}}})
    union = mount_union("low", "up")
    directory = f"{union.path}/d"
    watch = _inotify_init(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _inotify_add_watch(watch, os.fsencode(directory), MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE)
        with open(f"{directory}/a", "a") as file:
            file.write("more")
        os.rename(f"{directory}/b", f"{directory}/e")
        os.rmdir(f"{directory}/c")
        os.mkdir(f"{directory}/c")
        os.unlink(f"{directory}/e")
        wanted = [("a", MODIFY), ("b", MOVED_FROM), ("e", MOVED_TO), ("c", DELETE), ("c", CREATE), ("e", DELETE)]
        assert list(_events(watch)) == wanted
    finally:
        os.close(watch)


def _events(watch: int) -> Iterator[tuple[str, int]]:
    data = os.read(watch, 1 << 16)
    while data:
        _, mask, _, length = struct.unpack_from("=iIII", data)
        yield data[16 : 16 + length].rstrip(b"\0").decode(), mask & 0xFFF
        data = data[16 + length :]


def test_sockets_and_fifos(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Bound in the union, also over a deleted one of the lower branch, and reached by their names, old and new; what is
    sent through them comes from the union too."""
    build(str(tmp_path / "low"), {"s": Special(type=stat.S_IFSOCK), "f": Special()})
    union = mount_union("low", "up")
    path = f"{union.path}/s"
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(path)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        os.chmod(path, 0o600)
        os.rename(path, f"{path}2")
        os.link(f"{path}2", f"{path}3")
        for name in (f"{path}2", f"{path}3"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)
                peer, _ = server.accept()
                with peer, open(f"{union.path}/f", "rb", opener=_without_waiting) as fifo:
                    socket.send_fds(client, [b"x"], [fifo.fileno()])
                    _, [sent], _, _ = socket.recv_fds(peer, 1, 1)
                    with open(f"{union.path}/f", "wb", buffering=0) as writer:
                        writer.write(b"through")
                        assert os.read(sent, 100) == b"through"
                    os.close(sent)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def test_direct_io(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """O_DIRECT of a lower file, of its copy, and of a new file; beside who uses the cache."""
    build(str(tmp_path / "low"), {"f": "a" * 65536})
    union = mount_union("low", "up")
    with mmap.mmap(-1, 8192) as memory:
        for name, flags in (("f", 0), ("new", os.O_CREAT)):
            fd = os.open(f"{union.path}/{name}", os.O_RDONLY | os.O_DIRECT | flags)
            assert os.preadv(fd, [memory], 4096) == (0 if flags else 8192)
            os.close(fd)
            fd = os.open(f"{union.path}/{name}", os.O_RDWR | os.O_DIRECT)
            memory[:] = b"b" * 8192
            assert os.pwritev(fd, [memory], 4096) == 8192
            os.close(fd)
            with open(f"{union.path}/{name}", "r+b") as file:
                assert file.read()[4096:12288] == b"b" * 8192
                file.seek(4096)
                file.write(b"c" * 8192)
            fd = os.open(f"{union.path}/{name}", os.O_RDONLY | os.O_DIRECT)
            assert os.preadv(fd, [memory], 4096) == 8192 and memory[:] == b"c" * 8192
            os.close(fd)
