"""Modes, owners, times, inode numbers, and what the file system says of itself."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from tests.contracts.posix.case import USER, case, fails, in_child, opened, put
from tests.trees import Dir, File, HardLink, Symlink

PAST, FUTURE = 10**9 + 123_456_789, 4 * 10**18 + 987_654_321
_COARSE = 5  # CLOCK_REALTIME_COARSE, clock_gettime(2)


@case({"file": File("x", mode=0o600), "dir": {}})
def change_modes(root: str) -> None:
    for path in (f"{root}/file", f"{root}/dir"):
        for mode in (0o777, 0o000, 0o4755, 0o2751, 0o1700):
            os.chmod(path, mode)
            assert os.stat(path).st_mode & 0o7777 == mode
    with opened(f"{root}/file", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o444)
    assert os.stat(f"{root}/file").st_mode & 0o7777 == 0o444


@case({"file": "x", "dir": {}, "link": Symlink("file")})
def change_owners(root: str) -> None:
    for path in (f"{root}/file", f"{root}/dir"):
        os.chown(path, 11, 22)
        assert os.stat(path)[4:6] == (11, 22)
        os.chown(path, -1, 33)
        os.chown(path, 44, -1)
        assert os.stat(path)[4:6] == (44, 33)
    os.chown(f"{root}/link", 5, 6)
    assert os.stat(f"{root}/file")[4:6] == (5, 6)
    assert os.lstat(f"{root}/link")[4:6] == (0, 0)
    with opened(f"{root}/file", os.O_RDONLY) as fd:
        os.fchown(fd, 7, 8)
        assert os.fstat(fd)[4:6] == (7, 8)


@case({"file": File("x", mode=0o6755), "dir": Dir({}, mode=0o6755), "plain": File("x", mode=0o2644)})
def chown_clears_set_id_bits(root: str) -> None:
    """Of an executable file, for root too (chown(2)); a set-group-id without group execute stays, and a directory's."""
    for name, mode in (("file", 0o755), ("dir", 0o6755), ("plain", 0o2644)):
        os.chown(f"{root}/{name}", USER, USER)
        assert os.stat(f"{root}/{name}").st_mode & 0o7777 == mode, name


@case({"file": File("x", mode=0o6777), "cut": File("x", mode=0o6777), "roots": File("x", mode=0o6777)})
def writing_clears_set_id_bits(root: str) -> None:
    """For a user who is not root; truncating counts as writing."""
    in_child(lambda: put(f"{root}/file", b"y", 0), uid=USER)
    assert os.stat(f"{root}/file").st_mode & 0o7777 == 0o777
    in_child(lambda: os.truncate(f"{root}/cut", 0), uid=USER)
    assert os.stat(f"{root}/cut").st_mode & 0o7777 == 0o777
    put(f"{root}/roots", b"y", 0)
    assert os.stat(f"{root}/roots").st_mode & 0o7777 == 0o6777


@case({"file": "x", "dir": {}})
def set_times(root: str) -> None:
    for path in (f"{root}/file", f"{root}/dir"):
        for atime, mtime in ((PAST, FUTURE), (FUTURE, PAST), (0, 1)):
            os.utime(path, ns=(atime, mtime))
            info = os.stat(path)
            assert (info.st_atime_ns, info.st_mtime_ns) == (atime, mtime)
        before = time.time_ns()
        os.utime(path)
        # Kernel time stamps come from a clock of a tick's resolution (current_time(), 10 ms at most).
        assert before - 10_000_000 <= os.stat(path).st_mtime_ns <= time.time_ns()
    with opened(f"{root}/file", os.O_RDONLY) as fd:
        os.utime(fd, ns=(PAST, PAST))
        assert os.fstat(fd).st_mtime_ns == PAST


@case({"file": File("x", mtime_ns=PAST), "other": File("x", mtime_ns=PAST)})
def what_changes_times(root: str) -> None:
    path = f"{root}/file"
    ctime = os.stat(path).st_ctime_ns
    os.chmod(path, 0o600)
    os.rename(path, f"{root}/new")
    os.rename(f"{root}/new", path)
    os.link(path, f"{root}/new2")
    os.setxattr(path, "trusted.test", b"1")
    assert os.stat(path).st_mtime_ns == PAST
    assert os.stat(path).st_ctime_ns >= ctime
    with opened(path, os.O_RDWR):
        pass
    assert os.stat(path).st_mtime_ns == PAST
    put(path, b"y", 0)
    assert os.stat(path).st_mtime_ns > PAST
    os.truncate(f"{root}/other", 0)
    assert os.stat(f"{root}/other").st_mtime_ns > PAST


@case({"file": "x", "dir": {"sub": {}}, "link": Symlink("file"), "one": "1", "two": HardLink("one")})
def what_changes_the_time_of_change(root: str) -> None:
    """Also a change to what was before, of neither owner nor group, or of another of the file's names."""
    changes: dict[str, Callable[[str], object]] = {
        "chown to nobody else": lambda path: os.chown(path, -1, -1, follow_symlinks=False),
        "chown to the owner": lambda path: os.chown(path, 0, 0, follow_symlinks=False),
        "touch": lambda path: os.utime(path, ns=(PAST, PAST), follow_symlinks=False),
        "setxattr": lambda path: os.setxattr(path, "trusted.test", b"1", follow_symlinks=False),
        "setxattr again": lambda path: os.setxattr(path, "trusted.test", b"1", follow_symlinks=False),
        "rename": lambda path: os.rename(path, f"{root}/new"),
        "rename back": lambda path: os.rename(f"{root}/new", path),
    }
    for name in ("file", "dir", "dir/sub", "link", "one"):
        for what, change in changes.items():
            with opened(f"{root}/{name}" if what != "rename back" else f"{root}/new", os.O_PATH | os.O_NOFOLLOW) as fd:
                before = os.fstat(fd).st_ctime_ns
                pass_a_tick(before)
                change(f"{root}/{name}")
                assert os.fstat(fd).st_ctime_ns > before, f"{what} of {name}"
    acts: list[Callable[[], object]] = [
        lambda: os.link(f"{root}/one", f"{root}/new2"),
        lambda: os.unlink(f"{root}/two"),
    ]
    for act in acts:
        before = os.stat(f"{root}/one").st_ctime_ns
        pass_a_tick(before)
        act()
        assert os.stat(f"{root}/one").st_ctime_ns > before


def pass_a_tick(stamp_ns: int) -> None:
    """Return when the clock that time stamps may come from says more."""
    while time.clock_gettime_ns(_COARSE) <= stamp_ns:
        pass


@case({"file": File("x" * 1000, mtime_ns=PAST)})
def times_set_by_descriptor_after_writing_stay(root: str) -> None:
    """As cp -p, tar and rsync do it: write, set the time, close."""
    with opened(f"{root}/file", os.O_RDWR) as fd:
        os.write(fd, b"y" * 5000)
        os.utime(fd, ns=(PAST, PAST))
    assert os.stat(f"{root}/file").st_mtime_ns == PAST
    with opened(f"{root}/new", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"y" * 5000)
        os.utime(fd, ns=(PAST, PAST))
    assert os.stat(f"{root}/new").st_mtime_ns == PAST


@case({"file": "x", "dir": {"sub": {}}, "link": Symlink("file")})
def inode_numbers_stay(root: str) -> None:
    paths = [f"{root}/{name}" for name in ("file", "dir", "dir/sub", "link")]
    before = [os.lstat(path).st_ino for path in paths]
    assert len(set(before)) == 4
    put(f"{root}/file", b"more", os.O_APPEND)
    for path in paths:
        os.chown(path, 1, 1, follow_symlinks=False)
    put(f"{root}/dir/sub/new", b"")
    assert [os.lstat(path).st_ino for path in paths] == before
    assert {os.lstat(path).st_dev for path in paths} == {os.stat(root).st_dev}
    os.rename(f"{root}/dir", f"{root}/new-dir")
    assert os.stat(f"{root}/new-dir/sub").st_ino == before[2]


@case({"file": File("x", mode=0o4711)})
def a_new_file_of_an_old_name_is_new(root: str) -> None:
    with opened(f"{root}/file", os.O_RDONLY) as fd:
        os.unlink(f"{root}/file")
        put(f"{root}/file", b"y")
        assert os.stat(f"{root}/file").st_ino != os.fstat(fd).st_ino
    assert os.stat(f"{root}/file").st_mode & 0o7777 == 0o644


@case()
def umask_and_new_modes(root: str) -> None:
    def make() -> list[int]:
        os.umask(0o027)
        put(f"{root}/new", b"", mode=0o666)
        os.mkdir(f"{root}/new-dir", 0o777)
        os.mkfifo(f"{root}/new2", 0o666)
        return [os.stat(f"{root}/{name}").st_mode & 0o7777 for name in ("new", "new-dir", "new2")]

    assert in_child(make) == [0o640, 0o750, 0o640]


@case({"dir": Dir({}, mode=0o2775, gid=77)})
def set_group_id_directories_hand_their_group_down(root: str) -> None:
    put(f"{root}/dir/file", b"")
    os.mkdir(f"{root}/dir/sub")
    os.symlink("x", f"{root}/dir/link")
    assert os.stat(f"{root}/dir/file").st_gid == 77
    assert os.lstat(f"{root}/dir/link").st_gid == 77
    sub = os.stat(f"{root}/dir/sub")
    assert (sub.st_gid, sub.st_mode & 0o7777) == (77, 0o2755)


@case({"file": "x"})
def the_file_system_itself(root: str) -> None:
    info = os.statvfs(root)
    assert info.f_bsize > 0
    assert info.f_frsize > 0
    assert 0 < info.f_bavail <= info.f_bfree <= info.f_blocks
    assert info.f_ffree <= info.f_files
    with opened(f"{root}/file", os.O_RDONLY) as fd:
        assert os.fstatvfs(fd).f_blocks == info.f_blocks


@case({"file": "x"})
def access(root: str) -> None:
    assert os.access(f"{root}/file", os.F_OK | os.R_OK | os.W_OK)
    assert not os.access(f"{root}/file", os.X_OK)
    assert not os.access(f"{root}/missing", os.F_OK)
    os.chmod(f"{root}/file", 0o640)
    assert in_child(lambda: os.access(f"{root}/file", os.R_OK), uid=USER) is False
    with fails(errno.EACCES):
        in_child(lambda: os.open(f"{root}/file", os.O_RDONLY), uid=USER)
