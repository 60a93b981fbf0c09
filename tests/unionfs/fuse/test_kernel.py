"""What the kernel makes of our answers: a tree of four nodes that is on the wire alone, seen through system calls."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.contracts.posix.case import fails
from unionfs.fuse import abi, init, reply, table
from unionfs.fuse.dirents import DirectoryReply
from unionfs.fuse.request import Request, parse
from unionfs.linux import consts, files, fusedev, mounts

pytestmark = pytest.mark.needs("fuse")

FOREVER = 1_000_000_000
BTIME = 86_400_000_000_005


def status(mode: int, size: int = 0, rdev: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        st_mode=mode, st_uid=1234, st_gid=4321, st_rdev=rdev, st_size=size, st_blocks=size // 512 + 1, st_blksize=4096,
        st_atime_ns=-1_500_000_000, st_mtime_ns=1_000_000_001, st_ctime_ns=1_700_000_000_123_456_789,
    )


NODES = {
    1: status(0o040755), 2: status(0o100640, 7), 3: status(0o120777, 6),
    4: status(0o020600, rdev=os.makedev(240, 70000)),
}
NAMES = {b"file": 2, b"link": 3, b"device": 4}
LISTED = [(b".", 1), (b"..", 1), *NAMES.items()]


class Tree:
    """The server: answers every request by itself, and keeps what it was asked."""

    def __init__(self, fd: int, *, plus: bool) -> None:
        self.fd = fd
        self.seen: list[tuple[str, tuple[int, ...], list[bytes], bytes]] = []
        self.errors: list[BaseException] = []
        self.opened = (abi.FOPEN_DIRECT_IO, 0)
        self.wish = init.Wish(
            abi.FUSE_PASSTHROUGH | abi.FUSE_MAX_PAGES | (abi.FUSE_DO_READDIRPLUS if plus else 0),
            1 << 17, 12, 9, 1 << 17, 1,
        )
        self.agreed: init.Agreement | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        try:
            self._answer_all()
        except BaseException as error:
            self.errors.append(error)
        finally:
            os.close(self.fd)  # the connection ends with its last descriptor: nobody waits for an answer for ever

    def _answer_all(self) -> None:
        buffer = memoryview(bytearray(1 << 18))
        while True:
            try:
                size = os.readv(self.fd, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            request = parse(buffer[:size])
            row = table.ROWS[request.opcode]
            assert row is not None
            self.seen.append((row.name, request.fields, request.names, bytes(request.data)))
            if row.answers:
                try:
                    os.write(self.fd, self._answer(row.name, request))
                except FileNotFoundError:
                    # Nobody waits for these two: the end of the mount may have overtaken the answer.
                    if row.name not in ("RELEASE", "RELEASEDIR"):
                        raise

    def _entry(self, unique: int, nodeid: int) -> bytes:
        return reply.entry(unique, nodeid, 100 + nodeid, 1, NODES[nodeid], FOREVER, FOREVER)

    def _answer(self, name: str, r: Request) -> bytes:
        unique = r.unique
        if name == "INIT":
            self.agreed = init.negotiate(r.fields, self.wish)
            return reply.init(unique, self.agreed.reply)
        if name == "LOOKUP":
            known = r.names[0] in NAMES
            return self._entry(unique, NAMES[r.names[0]]) if known else reply.no_entry(unique, FOREVER)
        if name in ("GETATTR", "SETATTR"):
            return reply.attr(unique, 100 + r.nodeid, 1, NODES[r.nodeid], FOREVER)
        if name == "STATX":
            return reply.statx(unique, 100 + r.nodeid, 1, NODES[r.nodeid], BTIME, 0)
        if name in ("READDIR", "READDIRPLUS"):
            return self._directory(name, r)
        if name in ("GETXATTR", "LISTXATTR"):
            value = b"user.a\0user.b\0" if name == "LISTXATTR" else r.names[0]
            return reply.data(unique, value) if r.fields[0] else reply.xattr_size(unique, len(value))
        return {
            "READLINK": lambda: reply.data(unique, b"target"),
            "SYMLINK": lambda: self._entry(unique, 3),
            "OPENDIR": lambda: reply.opened(unique, 79, 0, 0),
            "OPEN": lambda: reply.opened(unique, 77, *self.opened),
            "CREATE": lambda: reply.created(unique, 2, 102, 1, NODES[2], FOREVER, FOREVER, 78, *self.opened),
            "READ": lambda: reply.data(unique, b"content"[r.fields[1]:]),
            "WRITE": lambda: reply.written(unique, r.fields[2]),
            "LSEEK": lambda: reply.offset(unique, 5),
            "COPY_FILE_RANGE": lambda: reply.written(unique, 3),
            "COPY_FILE_RANGE_64": lambda: reply.copied(unique, 3),
            "IOCTL": lambda: reply.ioctl(unique, 0, b"\x10\0\0\0"),
            "POLL": lambda: abi.OUT_HEADER.pack(24, 0, unique) + abi.POLL_OUT.pack(select.POLLIN),
            "STATFS": lambda: reply.statfs(unique, SimpleNamespace(
                f_blocks=1 << 40, f_bfree=2, f_bavail=1, f_files=4, f_ffree=3, f_bsize=4096, f_namemax=255, f_frsize=512
            )),
        }.get(name, lambda: reply.ok(unique))()

    def _directory(self, name: str, r: Request) -> bytes:
        listing = DirectoryReply(r.unique, 3 * abi.DIRENTPLUS.size)  # two at a time
        for at, (entry, nodeid) in enumerate(LISTED[r.fields[1]:], r.fields[1] + 1):
            st = NODES[nodeid]
            fits = (
                listing.add(entry, 100 + nodeid, st.st_mode, at) if name == "READDIR" else
                listing.add_plus(
                    entry, 0 if nodeid == 1 else nodeid, 100 + nodeid, 1, st, at, FOREVER, FOREVER
                )
            )
            if not fits:
                break
        return listing.message()

    def asked(self, name: str) -> list[tuple[tuple[int, ...], list[bytes], bytes]]:
        return [(fields, names, data) for opcode, fields, names, data in self.seen if opcode == name]


@pytest.fixture(params=["READDIRPLUS"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "mnt").mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mounts.mount("wire", str(tmp_path / "mnt"), "fuse.wire", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
    served = Tree(fd, plus=request.param == "READDIRPLUS")
    served.thread.start()
    try:
        yield served
    finally:
        mounts.umount2(str(tmp_path / "mnt"), consts.MNT_DETACH)
        served.thread.join(20)
    assert not served.errors
    assert not served.thread.is_alive()


@pytest.fixture
def mnt(tree: Tree, tmp_path: Path) -> str:
    return str(tmp_path / "mnt")


@pytest.mark.parametrize("name", ["file", "link", "device"])
def test_attributes(mnt: str, name: str) -> None:
    nodeid = NAMES[name.encode()]
    for _ in range(2):  # from LOOKUP, and after SETATTR from its answer
        st = os.lstat(f"{mnt}/{name}")
        assert st.st_ino == 100 + nodeid
        assert {field: getattr(st, field) for field in vars(NODES[nodeid])} == vars(NODES[nodeid])
        os.chown(f"{mnt}/{name}", 1, 1, follow_symlinks=False)


def test_setattr(tree: Tree, mnt: str) -> None:
    os.utime(f"{mnt}/file", ns=(-5, 10**9 + 7))
    os.truncate(f"{mnt}/file", 3)
    (times, _, _), (size, _, _) = tree.asked("SETATTR")
    asked = dict(zip(abi.FIELDS[abi.SETATTR_IN], times, strict=True))
    assert asked["valid"] == abi.FATTR_ATIME | abi.FATTR_MTIME
    assert [asked[name] for name in ("atime", "atimensec", "mtime", "mtimensec")] == [-1, 10**9 - 5, 1, 7]
    assert size[0] & abi.FATTR_SIZE
    assert size[abi.FIELDS[abi.SETATTR_IN].index("size")] == 3


def test_statx(tree: Tree, mnt: str) -> None:
    assert os.lstat(f"{mnt}/file").st_size == 7
    btime = files.statx(consts.AT_FDCWD, f"{mnt}/file".encode()).btime_ns
    if not tree.asked("STATX"):
        pytest.skip("this kernel sends no STATX (Linux 6.6)")
    assert btime == BTIME


def test_a_missing_name_is_asked_for_once(tree: Tree, mnt: str) -> None:
    for _ in range(3):
        with fails(errno.ENOENT):
            os.lstat(f"{mnt}/missing")
    assert tree.asked("LOOKUP") == [((), [b"missing"], b"")]


@pytest.mark.parametrize("tree", ["READDIR", "READDIRPLUS"], indirect=True)
def test_directory(tree: Tree, mnt: str) -> None:
    with os.scandir(mnt) as entries:
        found = {entry.name: (entry.inode(), entry.is_file(follow_symlinks=False)) for entry in entries}
    assert found == {"file": (102, True), "link": (103, False), "device": (104, False)}
    plus = tree.asked("READDIRPLUS") != []
    assert plus == (tree.agreed is not None and bool(tree.agreed.flags & abi.FUSE_DO_READDIRPLUS))
    assert os.lstat(f"{mnt}/device").st_rdev == os.makedev(240, 70000)
    assert len(tree.asked("LOOKUP")) == (0 if plus else 1)  # READDIRPLUS has told it


def test_symlink_and_attributes(tree: Tree, mnt: str) -> None:
    assert os.readlink(f"{mnt}/link") == "target"
    assert os.listxattr(f"{mnt}/file") == ["user.a", "user.b"]
    assert os.getxattr(f"{mnt}/file", "user.abc") == b"user.abc"
    os.setxattr(f"{mnt}/file", "user.a", b"one\0two", os.XATTR_CREATE)
    assert tree.asked("SETXATTR") == [((7, os.XATTR_CREATE), [b"user.a"], b"one\0two")]


def test_names(tree: Tree, mnt: str) -> None:
    os.symlink("to", f"{mnt}/new")
    os.rename(f"{mnt}/file", f"{mnt}/other")
    assert tree.asked("SYMLINK") == [((), [b"new", b"to"], b"")]
    assert (tree.asked("RENAME") + tree.asked("RENAME2"))[0][1] == [b"file", b"other"]


def test_an_open_file(tree: Tree, mnt: str) -> None:
    fd = os.open(f"{mnt}/new", os.O_RDWR | os.O_CREAT, 0o640)
    try:
        assert os.pread(fd, 100, 2) == b"ntent"
        assert os.pwrite(fd, b"hello", 9) == 5
        assert tree.asked("WRITE")[0][2] == b"hello"
        assert os.lseek(fd, 0, os.SEEK_DATA) == 5
        assert os.copy_file_range(fd, fd, 3, 0, 100) == 3
        assert fcntl.ioctl(fd, 0x80086601, bytes(4)) == b"\x10\0\0\0"  # FS_IOC_GETFLAGS
    finally:
        os.close(fd)
    assert tree.asked("CREATE")[0][1] == [b"new"]
    assert tree.asked("IOCTL")[0][0][5] == 4


def test_statfs(mnt: str) -> None:
    st = os.statvfs(mnt)
    assert (st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree) == (1 << 40, 2, 1, 4, 3)
    assert (st.f_bsize, st.f_frsize, st.f_namemax) == (4096, 512, 255)


def test_passthrough(tree: Tree, mnt: str, tmp_path: Path) -> None:
    os.lstat(mnt)
    assert tree.agreed is not None
    if not tree.agreed.passthrough:
        pytest.skip("this kernel has no passthrough (Linux 6.9)")
    (tmp_path / "backing").write_bytes(b"backing")
    with (tmp_path / "backing").open("rb") as backing:
        backing_id = fusedev.backing_open(tree.fd, backing.fileno())
    tree.opened = (abi.FOPEN_PASSTHROUGH, backing_id)
    with open(f"{mnt}/file", "rb") as file:
        assert file.read() == b"backing"
    fusedev.backing_close(tree.fd, backing_id)
    assert not tree.asked("READ")


def test_notifications(tree: Tree, mnt: str) -> None:
    def lookups() -> int:
        os.lstat(f"{mnt}/file")
        return len(tree.asked("LOOKUP"))

    assert (lookups(), lookups()) == (1, 1)
    os.write(tree.fd, reply.notify_inval_entry(abi.FUSE_ROOT_ID, b"file", 0))
    assert lookups() == 2
    os.write(tree.fd, reply.notify_inval_entry(abi.FUSE_ROOT_ID, b"file", abi.FUSE_EXPIRE_ONLY))
    assert lookups() == 3
    os.write(tree.fd, reply.notify_delete(abi.FUSE_ROOT_ID, 2, b"file"))
    assert lookups() == 4
    os.write(tree.fd, reply.notify_inval_inode(2, 0, 0))
    assert lookups() == 4
    assert len(tree.asked("GETATTR")) == 1
    assert tree.agreed is not None
    if tree.agreed.minor >= 44:
        os.write(tree.fd, reply.notify_inc_epoch())
        assert lookups() == 5
    if tree.agreed.minor >= 45:
        os.write(tree.fd, reply.notify_prune([2, 99]))
        assert lookups() == 6
    with fails(errno.ENOENT):
        os.write(tree.fd, reply.notify_inval_inode(99, 0, 0))


def test_an_answer_to_no_request_is_refused(tree: Tree, mnt: str) -> None:
    os.lstat(mnt)
    with fails(errno.ENOENT):
        os.write(tree.fd, reply.ok(1 << 40))
    with fails(errno.EINVAL):
        os.write(tree.fd, abi.OUT_HEADER.pack(17, 0, 1 << 40))


def test_poll_and_locks(tree: Tree, mnt: str) -> None:
    """Without FUSE_POSIX_LOCKS the kernel keeps locks by itself."""
    with open(f"{mnt}/file", "rb") as file:
        fcntl.lockf(file, fcntl.LOCK_SH)
        fcntl.flock(file, fcntl.LOCK_SH)
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN)]
    assert not {"GETLK", "SETLK", "SETLKW"} & {name for name, *_ in tree.seen}
    assert tree.asked("POLL")[0][0][3] & select.POLLIN
