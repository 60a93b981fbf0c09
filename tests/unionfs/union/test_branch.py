"""Branches that are not to be written to: the kernel itself refuses, and nobody else notices."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.mounting import Union
from tests.unionfs.inprocess import content, union, walk, write
from unionfs.linux import consts, mounts, processes
from unionfs.transport import control, device
from unionfs.union.branch import Branch, Permission

pytestmark = pytest.mark.needs("root", "trusted-xattr")


@pytest.fixture
def low(tmp_path: Path) -> Iterator[Path]:
    """A mount (shared, strictatime) with another one in it."""
    low = tmp_path / "low"
    low.mkdir()
    mounts.mount("low", str(low), "tmpfs", consts.MS_STRICTATIME)
    mounts.mount("none", str(low), None, consts.MS_SHARED)
    try:
        (low / "d").mkdir()
        (low / "inner").mkdir()
        mounts.mount("inner", str(low / "inner"), "tmpfs", consts.MS_STRICTATIME)
        for name in ("f", "d/f", "inner/f"):
            (low / name).write_text("lower")
            os.utime(low / name, ns=(5, 5))
        yield low
    finally:
        for point in reversed(mounts.mountinfo()):
            if Path(point.target).is_relative_to(os.path.realpath(low)):
                mounts.umount2(point.target)


@pytest.fixture
def opened(low: Path) -> Iterator[Branch]:
    branch = Branch.open(bytes(low), "ro")
    yield branch
    branch.close()


@pytest.mark.parametrize("permission", ["ro", "rr"])
def test_the_kernel_refuses_to_write(low: Path, permission: Permission) -> None:
    branch = Branch.open(bytes(low), permission)
    try:
        assert branch.guarded
        for name in ("f", "d/f", "inner/f"):
            fd = os.open(name, os.O_RDONLY, dir_fd=branch.fd)
            attempts = (
                partial(os.open, name, os.O_RDWR, dir_fd=branch.fd),
                partial(os.open, f"/proc/self/fd/{fd}", os.O_RDWR),
                partial(os.fchmod, fd, 0o777),
                partial(os.setxattr, fd, "trusted.test", b"1"),
                partial(os.unlink, name, dir_fd=branch.fd),
                partial(os.mkdir, f"{name}2", dir_fd=branch.fd),
            )
            for attempt in attempts:
                with fails(errno.EROFS):
                    attempt()
            os.close(fd)
    finally:
        branch.close()
    assert os.access(low / "f", os.W_OK)


def test_a_writable_branch_can_be_written_to(low: Path) -> None:
    branch = Branch.open(bytes(low), "rw")
    try:
        assert branch.private and not branch.guarded
        os.close(os.open("f", os.O_RDWR, dir_fd=branch.fd))
    finally:
        branch.close()


@pytest.mark.parametrize("permission", ["rw", "ro", "rr"])
def test_no_device_can_be_opened(low: Path, permission: Permission) -> None:
    """Nor by who is lent a file of it, nor in mounts below it; where it is mounted it can."""
    places = ("zero", "d/zero", "inner/zero")
    for name in places:
        os.mknod(low / name, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    branch = Branch.open(bytes(low), permission)
    try:
        for name in places:
            os.close(os.open(low / name, os.O_RDONLY))
            with fails(errno.EACCES):
                os.open(name, os.O_RDONLY, dir_fd=branch.fd)
            fd = os.open(name, os.O_PATH, dir_fd=branch.fd)
            with fails(errno.EACCES):
                os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
            os.close(fd)
    finally:
        branch.close()


def test_what_is_written_to_keeps_its_mount_busy(low: Path, tmp_path: Path) -> None:
    """A disk that is unmounted can be unplugged."""
    fds = len(os.listdir("/proc/self/fd"))
    branch = Branch.open(bytes(low / "inner"), "rw")
    with fails(errno.EBUSY):
        mounts.umount2(str(low / "inner"))
    with pytest.raises(OSError, match="another union writes"):
        Branch.open(bytes(low / "inner"), "rw")
    branch.close()
    assert len(os.listdir("/proc/self/fd")) == fds
    mounts.umount2(str(low / "inner"))


def test_it_is_the_same_directory(low: Path, opened: Branch) -> None:
    plain = Branch.open(bytes(low), "rw")
    try:
        for field in ("device", "root_inode", "fsid", "path"):
            assert getattr(opened, field) == getattr(plain, field)
    finally:
        plain.close()


def test_it_is_in_no_mount_table(low: Path) -> None:
    before = mounts.mountinfo()
    branch = Branch.open(bytes(low), "ro")
    try:
        assert mounts.mountinfo() == before
    finally:
        branch.close()


def test_it_gets_no_later_mount(low: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one made while the branch is being opened."""
    set_attributes = mounts.mount_setattr

    def set_attributes_and_mount(dirfd: int, path: bytes, flags: int, **wish: int) -> None:
        set_attributes(dirfd, path, flags, **wish)
        if os.listdir(low / "d"):
            mounts.mount("later", str(low / "d"), "tmpfs")

    monkeypatch.setattr(mounts, "mount_setattr", set_attributes_and_mount)
    branch = Branch.open(bytes(low), "ro")
    try:
        assert os.listdir(low / "d") == []
        os.close(os.open("d/f", os.O_RDONLY, dir_fd=branch.fd))
    finally:
        branch.close()


def test_where_it_was_can_be_unmounted_and_moved(low: Path, opened: Branch, tmp_path: Path) -> None:
    mounts.umount2(str(low / "inner"))
    assert os.listdir(low / "inner") == []
    os.rename(low / "d", low / "moved")
    fd = os.open("moved/f", os.O_RDONLY, dir_fd=opened.fd)
    assert os.pread(fd, 9, 0) == b"lower"
    os.close(fd)
    mounts.umount2(str(low))
    fd = os.open("inner/f", os.O_RDONLY, dir_fd=opened.fd)
    assert os.pread(fd, 9, 0) == b"lower"
    os.close(fd)


def test_a_branch_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "f").write_text("lower")
    with union(tmp_path) as fs:
        os.rename(tmp_path / "low", tmp_path / "moved")
        os.mkdir(tmp_path / "low")
        assert content(fs, walk(fs, "f")) == b"lower"


def test_without_the_privilege(low: Path) -> None:
    """Root of a user namespace may not copy mounts of the namespace above: the directory is opened plainly."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            try:
                processes.unshare(consts.CLONE_NEWUSER)
            except OSError:
                status = 77
            else:
                branch = Branch.open(bytes(low), "ro")
                os.close(os.open("inner/f", os.O_RDONLY, dir_fd=branch.fd))
                status = 2 if branch.guarded else 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 77:
        pytest.skip("user namespaces cannot be made")
    assert status == 0


def test_on_a_kernel_without_mount_setattr(low: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **wish: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(mounts, "mount_setattr", refuse)
    branch = Branch.open(bytes(low), "ro")
    assert not branch.guarded
    os.close(os.open("inner/f", os.O_RDONLY, dir_fd=branch.fd))
    branch.close()


@pytest.mark.parametrize(("name", "code"), [("absent", errno.ENOENT), ("f", errno.ENOTDIR)])
def test_what_is_no_directory_is_refused_as_ever(low: Path, name: str, code: int) -> None:
    with fails(code):
        Branch.open(bytes(low / name), "ro")


def test_nothing_reaches_the_lower_branch(low: Path, tmp_path: Path) -> None:
    """Neither bytes nor times, though its file system would note each access."""
    names = ("f", "d/f", "inner/f")
    directories = ("", "d", "inner")
    before = {name: os.stat(low / name) for name in directories}
    with union(tmp_path) as fs:
        for name in names:
            assert content(fs, walk(fs, name)) == b"lower"
            write(fs, walk(fs, name), b"upper")
            assert content(fs, walk(fs, name)) == b"upper"
        after = {name: os.stat(low / name) for name in (*directories, *names)}
    assert all(after[name].st_atime_ns == after[name].st_mtime_ns == 5 for name in names)
    assert all(after[name].st_atime_ns == before[name].st_atime_ns for name in directories)
    assert all((low / name).read_text() == "lower" for name in names)
    assert os.stat(low / "f").st_atime_ns != 5, "a mount that notes no access proves nothing"


@pytest.mark.needs("fuse")
def test_through_a_mount(mount_union: Callable[..., Union], low: Path) -> None:
    mounted = mount_union("low", "up")
    point = mounts.mounted_at(os.path.realpath(mounted.path))
    assert point is not None
    server = control.find(device.identity_of(point) or "")
    assert server is not None
    assert mounts.mountinfo(server.pid) == mounts.mountinfo()
    server.close()
    for name in ("f", "inner/f"):
        path = Path(mounted.path, name)
        assert path.read_text() == "lower"
        with open(path, "r+") as file:
            file.write("upper")
        assert path.read_text() == "upper"
        assert (os.stat(low / name).st_atime_ns, os.stat(low / name).st_mtime_ns) == (5, 5)
        assert (low / name).read_text() == "lower"
        assert stat.S_ISREG(os.stat(Path(mounted.upper, name)).st_mode)
