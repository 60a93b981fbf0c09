"""Who may do what: users who are not root, groups, sticky directories."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from tests.contracts.posix.case import OTHER, USER, case, content, fails, in_child, put
from tests.trees import Dir, File


def denied(code: int, function: Callable[[], Any], uid: int = USER) -> None:
    with fails(code):
        in_child(function, uid=uid)


@case({"open": Dir({}, mode=0o777)})
def new_entries_belong_to_their_maker(root: str) -> None:
    def make() -> None:
        base = f"{root}/open"
        put(f"{base}/file", b"mine")
        os.mkdir(f"{base}/dir")
        os.symlink("x", f"{base}/link")
        os.mkfifo(f"{base}/fifo")
        put(f"{base}/dir/below", b"")

    in_child(make, uid=USER)
    for name in ("file", "dir", "link", "fifo", "dir/below"):
        assert os.lstat(f"{root}/open/{name}")[4:6] == (USER, USER), name


@case({"private": File("x", mode=0o600), "readable": File("x", mode=0o644), "mine": File("x", mode=0o400, uid=USER),
       "group": File("x", mode=0o060, gid=50)})
def reading_and_writing(root: str) -> None:
    denied(errno.EACCES, lambda: content(f"{root}/private"))
    assert in_child(lambda: content(f"{root}/readable"), uid=USER) == b"x"
    denied(errno.EACCES, lambda: put(f"{root}/readable", b"y"))
    denied(errno.EACCES, lambda: os.truncate(f"{root}/readable", 0))
    assert in_child(lambda: content(f"{root}/mine"), uid=USER) == b"x"
    denied(errno.EACCES, lambda: put(f"{root}/mine", b"y"))
    denied(errno.EACCES, lambda: content(f"{root}/group"))
    in_child(lambda: put(f"{root}/group", b"y"), uid=USER, groups=(50,))
    assert content(f"{root}/group") == b"y"


@case({"closed": Dir({"file": File("x", mode=0o666)}, mode=0o700), "listed": Dir({"file": "x"}, mode=0o744),
       "passed": Dir({"file": "x"}, mode=0o711), "fixed": {"file": "x", "dir": {}}})
def directories(root: str) -> None:
    denied(errno.EACCES, lambda: content(f"{root}/closed/file"))
    denied(errno.EACCES, lambda: os.listdir(f"{root}/closed"))
    assert in_child(lambda: os.listdir(f"{root}/listed"), uid=USER) == ["file"]
    denied(errno.EACCES, lambda: os.stat(f"{root}/listed/file"))
    denied(errno.EACCES, lambda: os.listdir(f"{root}/passed"))
    assert in_child(lambda: content(f"{root}/passed/file"), uid=USER) == b"x"
    fixed = f"{root}/fixed"
    for change in (
        lambda: put(f"{fixed}/new", b""), lambda: os.mkdir(f"{fixed}/new"), lambda: os.unlink(f"{fixed}/file"),
        lambda: os.rmdir(f"{fixed}/dir"), lambda: os.rename(f"{fixed}/file", f"{fixed}/new"),
        lambda: os.symlink("x", f"{fixed}/new"), lambda: os.mkfifo(f"{fixed}/new"),
    ):
        denied(errno.EACCES, change)
    assert sorted(os.listdir(fixed)) == ["dir", "file"]


@case({"roots": File("x", mode=0o666), "mine": File("x", uid=USER, gid=USER), "dir": {}})
def only_the_owner_changes_metadata(root: str) -> None:
    for change in (
        lambda: os.chmod(f"{root}/roots", 0o777), lambda: os.chown(f"{root}/roots", USER, -1),
        lambda: os.utime(f"{root}/roots", ns=(1, 1)), lambda: os.chown(f"{root}/mine", OTHER, -1),
        lambda: os.chown(f"{root}/mine", -1, OTHER),
    ):
        denied(errno.EPERM, change)
    in_child(lambda: os.utime(f"{root}/roots"), uid=USER)  # whoever may write may set the times to now
    in_child(lambda: os.chmod(f"{root}/mine", 0o600), uid=USER)
    in_child(lambda: os.utime(f"{root}/mine", ns=(1, 1)), uid=USER)
    in_child(lambda: os.chown(f"{root}/mine", -1, 60), uid=USER, groups=(60,))
    assert os.stat(f"{root}/mine")[4:6] == (USER, 60)


@case({"tmp": Dir({"a": File("", uid=USER), "b": File("", uid=OTHER), "d": Dir({}, uid=OTHER)}, mode=0o1777)})
def sticky_directories(root: str) -> None:
    tmp = f"{root}/tmp"
    denied(errno.EPERM, lambda: os.unlink(f"{tmp}/b"))
    denied(errno.EPERM, lambda: os.rename(f"{tmp}/b", f"{tmp}/new"))
    denied(errno.EPERM, lambda: os.rename(f"{tmp}/a", f"{tmp}/b"))
    denied(errno.EPERM, lambda: os.rmdir(f"{tmp}/d"))
    in_child(lambda: os.rename(f"{tmp}/a", f"{tmp}/new"), uid=USER)
    in_child(lambda: os.unlink(f"{tmp}/new"), uid=USER)
    in_child(lambda: os.unlink(f"{tmp}/b"), uid=OTHER)
    assert os.stat(tmp).st_mode & 0o7777 == 0o1777


@case({"open": Dir({}, mode=0o777)})
def a_new_file_is_open_whatever_its_mode(root: str) -> None:
    """open(2): the mode applies to later accesses; as git and ssh write their key files."""

    def make() -> bytes:
        fd = os.open(f"{root}/open/new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o400)
        os.write(fd, b"secret")
        os.close(fd)
        fd = os.open(f"{root}/open/new2", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o000)
        os.write(fd, b"x")
        os.fchmod(fd, 0o440)
        os.close(fd)
        return content(f"{root}/open/new") + content(f"{root}/open/new2")

    assert in_child(make, uid=USER) == b"secretx"
    assert os.stat(f"{root}/open/new").st_mode & 0o777 == 0o400


@case({"dir": Dir({"sub": Dir({"file": File("x", uid=USER)}, uid=USER)}, mode=0o755)})
def a_user_changes_what_is_below_a_directory_of_roots(root: str) -> None:
    in_child(lambda: put(f"{root}/dir/sub/file", b"y"), uid=USER)
    in_child(lambda: os.rename(f"{root}/dir/sub/file", f"{root}/dir/sub/new"), uid=USER)
    assert os.stat(f"{root}/dir/sub/new")[4:6] == (USER, 0)
    assert os.stat(f"{root}/dir/sub")[4:6] == (USER, 0)
    assert os.stat(f"{root}/dir")[4:6] == (0, 0)
