"""Trees that are attached nowhere: what a user of the machine, another mount namespace and a kill can do about them."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.diff import layer, write_tree
from drivers.diff.change import Found
from drivers.diff.walk import differences
from drivers.disk import loop
from drivers.disk.trees import open_regular
from drivers.errors import InUse, Unavailable
from drivers.mounts import overlayfs
from drivers.mounts.attached import mount_all, unmount_all
from drivers.mounts.tree import open_tree, private
from drivers.mounts.union import branches
from drivers.overlay2 import overlay
from tests import trees
from tests.capabilities import missing
from tests.children import Child, in_child
from tests.leaks import processes
from tests.mounting import mounted, seen
from unionfs.linux import consts, libc
from unionfs.linux.files import renameat2
from unionfs.linux.mounts import mount, mounted_at, mountinfo
from unionfs.linux.processes import unshare

KINDS = ("bind", "overlay", "overlay by option string", "unionfs", "unionfs by pyfuse3", "tmpfs", "ext4", "btrfs")
UNIONS = ("unionfs", "unionfs by pyfuse3")
HARMLESS = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
SECRET = b"the device's own"


@pytest.fixture(params=KINDS)
def values(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Mount]]:
    """A tree of each type, with a file "f" in it unless it is new."""
    kind, _, way = request.param.partition(" by ")
    if reason := missing({"unionfs": "fuse", "overlay": "overlay"}.get(kind, "root")):
        pytest.skip(reason)
    low, up, work = (str(tmp_path / name) for name in ("low", "up", "work"))
    trees.build(low, {"f": "x"})
    trees.build(up, {})
    if kind == "bind":
        yield [Mount("bind", low, ("rw",))]
    elif kind == "overlay":
        os.mkdir(work)
        if way:
            monkeypatch.setattr(overlayfs, "takes_layers", lambda: False)
        yield [overlay([low], up, work)]
    elif kind == "unionfs":
        words = (f"transport={way}",) if way else ()
        yield [Mount("unionfs", "unionfs", (branches([(up, "rw"), (low, "rr")]), *words))]
    elif kind == "tmpfs":
        yield [Mount("tmpfs", "tmpfs", ("size=1m",))]
    else:
        make = missing(f"program:mkfs.{kind}")
        if make:
            pytest.skip(make)
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(200 << 20)
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True)
        with loop.attached(str(image)) as device:
            yield [Mount(kind, device, ("discard", "rw"))]


def places() -> set[tuple[int, str]]:
    return {(point.mount_id, point.target) for point in mountinfo()}


def as_nobody(function: Callable[[], object]) -> None:
    """`function` fails in a process of a user without any privilege, for want of permission."""

    def attempt() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError):
            function()

    assert in_child(attempt).wait() == 0


def test_nobody_finds_it(values: list[Mount]) -> None:
    """It is in no table of mounts, and behind descriptors that only root can follow."""
    before = places()
    with private(values) as root:
        assert places() == before
        os.mkdir("made", 0o777, dir_fd=root)
        me = os.getpid()
        as_nobody(lambda: os.listdir(f"/proc/{me}/fd/{root}"))
        as_nobody(lambda: os.listdir(f"/proc/{me}/fd"))
        as_nobody(lambda: os.stat(f"/proc/{me}/fd/{root}/made"))
        server = [pid for pid in processes() if b"--hand-over" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        for pid in server:
            as_nobody(lambda pid=pid: os.listdir(f"/proc/{pid}/fd"))  # type: ignore[misc]
    assert places() == before


def test_nothing_in_it_can_be_used(values: list[Mount]) -> None:
    """Not even by who got a descriptor of it: no set-user-ID program, no device."""
    with private(values) as root:
        assert os.fstatvfs(root).f_flag & HARMLESS == HARMLESS
        os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5), dir_fd=root)
        with open(os.open("evil", os.O_CREAT | os.O_WRONLY, 0o755, dir_fd=root), "wb") as file:
            file.write(Path("/bin/true").read_bytes())
        os.chmod("evil", 0o4755, dir_fd=root)
        assert os.stat("evil", dir_fd=root).st_mode & stat.S_ISUID
        with pytest.raises(PermissionError):
            os.open("zero", os.O_RDONLY, dir_fd=root)
        as_nobody(lambda: os.open("zero", os.O_RDONLY, dir_fd=root))
        as_nobody(lambda: os.execv(f"/proc/self/fd/{root}/evil", ["evil"]))
    with private(values, read_only=True) as root, pytest.raises(OSError, match="Read-only"):
        os.mkdir("new", dir_fd=root)


def test_a_containers_tree_is_as_it_is(values: list[Mount], tmp_path: Path) -> None:
    """With programs and devices; attached, it goes on without its descriptor, and the end of all is its end."""
    target = str(tmp_path / "target")
    os.mkdir(target)
    tree = open_tree(values)
    tree.attach(target)
    assert not os.statvfs(target).f_flag & HARMLESS
    tree.release()
    os.mknod(f"{target}/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with open(f"{target}/zero", "rb") as zero:
        assert zero.read(1) == b"\0"
    unmount_all(target)
    tree.close()
    tree.close()
    assert mounted_at(target) is None


def test_what_a_namespace_copies_is_none_of_it(values: list[Mount]) -> None:
    """One that is made meanwhile, of mounts that are shared or private, keeps nothing of it in use."""
    for propagation in (consts.MS_PRIVATE, consts.MS_SHARED):

        def copied(propagation: int = propagation) -> None:
            unshare(consts.CLONE_NEWNS)
            mount("none", "/", None, consts.MS_REC | propagation)
            before = places()
            with private(values) as root:
                holding = subprocess.Popen(["unshare", "-m", "cat"], stdin=subprocess.PIPE)
                while os.stat(f"/proc/{holding.pid}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino:
                    os.sched_yield()
                os.mkdir(f"made-{propagation}", dir_fd=root)
            assert places() == before
            with private(values):  # the server of the first has ended, or this would be refused
                pass
            holding.communicate()

        assert in_child(copied).wait() == 0


def test_who_is_killed_leaves_nothing(values: list[Mount]) -> None:
    before, running = places(), processes()
    reader, writer = os.pipe()

    def hold() -> None:
        with private(values) as root:
            os.mkdir("made", dir_fd=root)
            os.write(writer, b"x")
            signal.pause()

    child = in_child(hold)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    servers = [os.pidfd_open(pid) for pid in processes() - running - {child.pid}]
    assert bool(servers) == (values[0].type == "unionfs")
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    for server in servers:
        assert select.select([server], [], [], 30)[0]
        os.close(server)
    assert places() == before
    with private(values):
        pass


def test_the_last_of_several_counts(tmp_path: Path) -> None:
    trees.build(str(tmp_path / "one"), {"one": ""})
    trees.build(str(tmp_path / "two"), {"two": ""})
    with private([Mount("bind", str(tmp_path / name)) for name in ("one", "two")]) as root:
        assert os.listdir(root) == ["two"]


def test_a_bind_gets_nothing_that_is_mounted_later(tmp_path: Path) -> None:
    """Of a shared mount a copy is a peer, unless it is made private: detached only on Linux 6.15, attached on all."""

    def look() -> None:
        unshare(consts.CLONE_NEWNS)
        mount("none", "/", None, consts.MS_REC | consts.MS_PRIVATE)
        trees.build(str(tmp_path / "source"), {"below": {}})
        mount_all([Mount("tmpfs", "tmpfs")], str(tmp_path / "source"))
        mount("none", str(tmp_path / "source"), None, consts.MS_SHARED)
        trees.build(str(tmp_path / "source"), {"below": {}})
        value = Mount("bind", str(tmp_path / "source"))
        with private([value]) as root, mounted([value]) as path:
            mount_all([Mount("tmpfs", "tmpfs")], str(tmp_path / "source/below"))
            Path(tmp_path, "source/below/f").write_text("x")
            assert os.listdir(f"/proc/self/fd/{root}/below") == os.listdir(f"{path}/below") == []

    assert in_child(look).wait() == 0


@pytest.mark.parametrize("values", UNIONS, indirect=True)
def test_something_open_keeps_a_union(values: list[Mount]) -> None:
    """It is said, in a bounded time; and the server goes with the last that is open."""
    tree = open_tree(values)
    opened = os.open("f", os.O_RDONLY, dir_fd=tree.fd)
    with pytest.raises(InUse, match="something is open in it"):
        tree.close(0.2)
    assert os.read(opened, 1) == b"x"
    os.close(opened)


@pytest.mark.parametrize("values", UNIONS, indirect=True)
def test_what_is_lost_on_the_way_keeps_nobody(values: list[Mount], monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that is an exception may come between a descriptor's opening and its name. It is told, and not waited
    for a file that nobody can close any more until the process has ended."""
    monkeypatch.setattr("drivers.mounts.tree._HURRIED_SECONDS", 0.2)
    lost = []
    with pytest.raises(SystemExit), private(values) as root:
        lost.append(os.open("f", os.O_RDONLY, dir_fd=root))
        raise SystemExit
    assert os.read(lost[0], 1) == b"x"
    os.close(lost[0])


def test_a_failure_leaves_no_descriptor(tmp_path: Path) -> None:
    """pytest's own look at what a test leaves sees them."""
    for values, error in (
        ([Mount("bind", "/no/such/place")], FileNotFoundError),
        ([overlay([str(tmp_path / "missing"), str(tmp_path)])], FileNotFoundError),
        ([Mount("unionfs", "unionfs", (branches([(str(tmp_path / "missing"), "rw")]),))], Unavailable),
        ([Mount("ext4", "/dev/null")], OSError),
        ([Mount("no-such-type", "x")], Unavailable),
    ):
        with pytest.raises(error), private(values):
            pass
    with pytest.raises(ZeroDivisionError), private([Mount("tmpfs", "tmpfs")]):
        _ = 1 // 0


# What is read in a tree while somebody exchanges what is there.


class Opened:
    """Which of `paths` somebody opens, by inotify(7): to look with O_PATH is not to open."""

    _IN_OPEN = 0x20

    def __init__(self, *paths: str) -> None:
        import ctypes

        self._fd = libc.bind("inotify_init1", ctypes.c_int)(os.O_NONBLOCK | os.O_CLOEXEC)
        add = libc.bind("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
        for path in paths:
            add(self._fd, os.fsencode(path), self._IN_OPEN)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def any(self) -> bool:
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False


def test_only_files_are_opened(tmp_path: Path) -> None:
    trees.build(str(tmp_path), {"file": "x", "link": trees.Symlink("file"), "directory": {}})
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with Opened(str(tmp_path / "fifo"), str(tmp_path / "device")) as opened:
            for name in ("fifo", "device", "socket", "link", "directory"):
                with pytest.raises(OSError, match="Stale") as refused:
                    open_regular(directory, name.encode())
                assert refused.value.filename == name.encode()
            assert not opened.any()
        with open(open_regular(directory, b"file"), "rb") as file:
            assert file.read() == b"x"
    finally:
        os.close(directory)


def test_what_takes_a_files_place_is_not_opened(tmp_path: Path) -> None:
    """Between the look at its name and its opening, at every file of a tree but one."""
    tree, aside = tmp_path / "tree", tmp_path / "aside"
    names = [f"f{number}" for number in range(20)]
    trees.build(str(tree), {**dict.fromkeys(names, "plain"), "steady": "steady"})
    aside.mkdir()
    for number, name in enumerate(names):
        if number % 2:
            os.mkfifo(aside / name)
        else:
            os.mknod(aside / name, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    directory = os.open(tree, os.O_RDONLY)

    def exchanged() -> Iterator[Found]:
        for found in differences(directory, None):
            if os.fsdecode(found.path) in names:
                renameat2(directory, found.path, consts.AT_FDCWD, os.fsencode(aside) + b"/" + found.path,
                          consts.RENAME_EXCHANGE)  # fmt: skip
            yield found

    try:
        with Opened(*(str(aside / name) for name in names)) as opened:
            entries = [(entry.name, b"".join(content)) for entry, content in layer.members(exchanged())]
            assert entries == [(b"./", b""), (b"steady", b"steady")]
            assert not opened.any()
    finally:
        os.close(directory)


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[int]:
    """A device full of SECRET."""
    (tmp_path / "secret").write_bytes(SECRET * (1 << 12))
    with loop.attached(str(tmp_path / "secret")) as device:
        yield os.stat(device).st_rdev


def exchanging(path: str, names: list[str]) -> Child:
    def work() -> None:
        while True:
            for name in names:
                renameat2(consts.AT_FDCWD, os.fsencode(f"{path}/{name}"), consts.AT_FDCWD,
                          os.fsencode(f"{path}/.{name}"), consts.RENAME_EXCHANGE)  # fmt: skip

    return in_child(work)


@pytest.mark.parametrize("values", ["bind", "overlay", *UNIONS], indirect=True)
def test_a_tree_that_is_exchanged_under_our_eyes(values: list[Mount], block_device: int) -> None:
    """No archive of it has a byte of the device, none waits at a FIFO, and all have what was there all the time."""
    names = [f"{kind}{number}" for kind in ("block", "fifo") for number in range(8)]
    with mounted(values) as path:
        Path(path, "steady").write_bytes(b"steady" * 100)
        for name in names:
            Path(path, name).write_bytes(b"plain" * 100)
            if name.startswith("block"):
                os.mknod(f"{path}/.{name}", stat.S_IFBLK | 0o666, block_device)
            else:
                os.mkfifo(f"{path}/.{name}")
        child = exchanging(path, names)
        try:
            with seen(path) as root:
                for _ in range(30):
                    out = io.BytesIO()
                    write_tree(root, out.write)
                    assert SECRET not in out.getvalue()
                    assert b"steady" * 100 in out.getvalue()
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
