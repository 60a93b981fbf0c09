"""What chattr(1) forbids of a file by +i and +a is forbidden in a union as on kernel overlayfs, in whichever branch the
file is: every change of it, of its name, and of names in it."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.contracts.posix.acl import ACCESS, HANDED_DOWN
from tests.contracts.posix.case import fails, put
from tests.mounting import Union
from tests.trees import Dir, Entry, HardLink, build
from tests.unionfs.branch_flags import change, settable
from unionfs.linux import consts, files, mounts
from unionfs.linux.consts import FS_APPEND_FL, FS_IMMUTABLE_FL

pytestmark = pytest.mark.needs("fuse", "overlay", "trusted-xattr")

FLAGS = {"i": FS_IMMUTABLE_FL, "a": FS_APPEND_FL}
PLACES = ("low", "up")

# `file` and `dir` have the flag. What is in `dir` has none.
TREE: Mapping[str, Entry] = {
    "file": "content", "other": "other", "one": "1", "two": HardLink("one"), "empty": {}, "bare": {},
    "dir": Dir({"f": "inside", "sub": Dir({"g": "inside"}), "empty": {}}),
    "parent": Dir({"file": "content", "f": "free"}),
}  # fmt: skip
PROTECTED = ("file", "dir", "bare", "one", "parent/file")


def opened(path: str, flags: int, act: Callable[[int], object] = lambda fd: None) -> None:
    fd = os.open(path, flags, 0o644)
    try:
        act(fd)
    finally:
        os.close(fd)


def renamed(old: str, new: str, flags: int) -> None:
    files.renameat2(consts.AT_FDCWD, os.fsencode(old), consts.AT_FDCWD, os.fsencode(new), flags)


def write_then_create(top: str) -> None:
    put(f"{top}/dir/f", b"W", 0)
    put(f"{top}/dir/new", b"new")


def write_then_unlink(top: str) -> None:
    put(f"{top}/dir/f", b"W", 0)
    os.unlink(f"{top}/dir/f")


def rename_then_write(top: str) -> None:
    os.rename(f"{top}/parent", f"{top}/new")
    put(f"{top}/new/f", b"W")
    put(f"{top}/new/file", b"W")


CHANGES: Mapping[str, Callable[[str], object]] = {
    "read": lambda top: opened(f"{top}/file", os.O_RDONLY, lambda fd: os.read(fd, 10)),
    "write": lambda top: put(f"{top}/file", b"W", 0),
    "open to write": lambda top: opened(f"{top}/file", os.O_RDWR),
    "append": lambda top: put(f"{top}/file", b"more", os.O_APPEND),
    "append and truncate": lambda top: put(f"{top}/file", b"more", os.O_APPEND | os.O_TRUNC),
    "append and set the size": lambda top: opened(
        f"{top}/file", os.O_WRONLY | os.O_APPEND, lambda fd: os.ftruncate(fd, 1)
    ),
    "open to truncate": lambda top: opened(f"{top}/file", os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda top: os.truncate(f"{top}/file", 1),
    "chmod": lambda top: os.chmod(f"{top}/file", 0o600),
    "chown": lambda top: os.chown(f"{top}/file", 1, 1),
    "date": lambda top: os.utime(f"{top}/file", ns=(1, 1)),
    "setxattr": lambda top: os.setxattr(f"{top}/file", "trusted.x", b"1"),
    "removexattr": lambda top: os.removexattr(f"{top}/file", "trusted.was"),
    "set an ACL": lambda top: os.setxattr(f"{top}/file", ACCESS, HANDED_DOWN),
    "unlink": lambda top: os.unlink(f"{top}/file"),
    "unlink a hard link": lambda top: os.unlink(f"{top}/two"),
    "link": lambda top: os.link(f"{top}/file", f"{top}/new"),
    "rename": lambda top: os.rename(f"{top}/file", f"{top}/new"),
    "rename over it": lambda top: os.rename(f"{top}/other", f"{top}/file"),
    "exchange": lambda top: renamed(f"{top}/other", f"{top}/file", consts.RENAME_EXCHANGE),
    "write below": lambda top: put(f"{top}/dir/f", b"W", 0),
    "write deeper": lambda top: put(f"{top}/dir/sub/g", b"W", 0),
    "chmod below": lambda top: os.chmod(f"{top}/dir/sub", 0o700),
    "create in it": lambda top: put(f"{top}/dir/new", b"new"),
    "create deeper": lambda top: put(f"{top}/dir/sub/new", b"new"),
    "write, then create": write_then_create,
    "write, then unlink": write_then_unlink,
    "mkdir in it": lambda top: os.mkdir(f"{top}/dir/new"),
    "symlink in it": lambda top: os.symlink("x", f"{top}/dir/new"),
    "mkfifo in it": lambda top: os.mkfifo(f"{top}/dir/new"),
    "link into it": lambda top: os.link(f"{top}/other", f"{top}/dir/new"),
    "rename into it": lambda top: os.rename(f"{top}/other", f"{top}/dir/new"),
    "rename over what is in it": lambda top: os.rename(f"{top}/other", f"{top}/dir/f"),
    "rename within it": lambda top: os.rename(f"{top}/dir/f", f"{top}/dir/new"),
    "rename out of it": lambda top: os.rename(f"{top}/dir/f", f"{top}/new"),
    "unlink in it": lambda top: os.unlink(f"{top}/dir/f"),
    "rmdir in it": lambda top: os.rmdir(f"{top}/dir/empty"),
    "rmdir": lambda top: os.rmdir(f"{top}/bare"),
    "rename the directory": lambda top: os.rename(f"{top}/dir", f"{top}/new"),
    "rename over the directory": lambda top: os.rename(f"{top}/empty", f"{top}/bare"),
    "chmod of the directory": lambda top: os.chmod(f"{top}/dir", 0o700),
    "setxattr of the directory": lambda top: os.setxattr(f"{top}/dir", "trusted.x", b"1"),
    "rename what it is in": lambda top: os.rename(f"{top}/parent", f"{top}/new"),
    "rename what it is in, then write": rename_then_write,
}  # fmt: skip

Outcome = tuple[str, list[str]]


def protect(branch: str) -> None:
    for name in CHANGES:
        for letter, flag in FLAGS.items():
            os.setxattr(f"{branch}/{name}-{letter}/file", "trusted.was", b"1")
            for path in PROTECTED:
                change(Path(branch, f"{name}-{letter}", path), flag)


def free(top: str) -> None:
    for directory, _, names in os.walk(top):
        for name in (".", *names):
            path = Path(directory, name)
            if stat.S_ISREG(path.lstat().st_mode) or name == ".":
                change(path, 0)


def look(top: str) -> list[str]:
    found = []
    for directory, directories, names in os.walk(top):
        for name in (*directories, *names):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            content = Path(path).read_text() if stat.S_ISREG(info.st_mode) else ""
            found.append(f"{os.path.relpath(path, top)} {info.st_mode:o} {info.st_uid} {content}")
    return sorted(found)


def outcomes(top: str) -> dict[str, Outcome]:
    said: dict[str, Outcome] = {}
    for name, act in CHANGES.items():
        for letter in FLAGS:
            at = f"{top}/{name}-{letter}"
            try:
                act(at)
                answer = ""
            except OSError as error:
                answer = errno.errorcode[error.errno or 0]
            said[f"{name} +{letter}"] = answer, look(at)
    return said


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="protected-") as home:
        build(home, {"probe": ""})
        if not settable(Path(home, "probe")):
            pytest.skip("the temporary directory's file system has no inode flags")
        yield home
        free(home)


def branches(home: str) -> list[str]:
    for place in PLACES:
        build(f"{home}/{place}", {place: Dir({f"{name}-{letter}": Dir(TREE) for name in CHANGES for letter in FLAGS})})
        protect(f"{home}/{place}/{place}")
    return [f"{home}/{place}" for place in PLACES]


@pytest.fixture(scope="module")
def overlayfs(home: str) -> Iterator[Mapping[str, dict[str, Outcome]]]:
    low, up = branches(f"{home}/overlay")
    build(f"{home}/overlay", {"work": {}, "merged": {}})
    merged = f"{home}/overlay/merged"
    options = f"lowerdir={low},upperdir={up},workdir={home}/overlay/work,redirect_dir=on,index=on"
    mounts.mount("overlay", merged, "overlay", 0, options)
    try:
        yield {place: outcomes(f"{merged}/{place}") for place in PLACES}
    finally:
        mounts.umount2(merged)


@pytest.fixture(scope="module")
def union(home: str, transport: str) -> Iterator[Union]:
    union = Union(f"{home}/{transport}", branches(f"{home}/{transport}"), transport=transport)
    yield union.mount()
    union.close()


@pytest.mark.parametrize("place", PLACES)
def test_as_overlayfs(union: Union, overlayfs: Mapping[str, dict[str, Outcome]], place: str) -> None:
    found, expected = outcomes(f"{union.path}/{place}"), overlayfs[place]
    differing = [f"{name}\n  overlayfs {expected[name]}\n  union     {found[name]}" for name in found
                 if found[name] != expected[name]]  # fmt: skip
    assert not differing, "\n".join([f"{len(differing)} of {len(found)} differ", *differing])


def test_kept_over_a_remount(home: str, transport: str, tmp_path: Path) -> None:
    """By copies too: of a file that was appended to, and of a directory in which something was changed."""
    low = f"{home}/kept-{transport}"
    build(low, {"dir": Dir({"f": "f"}), "log": "log"})
    change(Path(low, "dir"), FS_IMMUTABLE_FL)
    change(Path(low, "log"), FS_APPEND_FL)
    union = Union(str(tmp_path), [low, f"{home}/kept-up-{transport}"], transport=transport)
    os.mkdir(union.upper)
    union.mount()
    try:
        put(f"{union.path}/dir/f", b"F", 0)
        put(f"{union.path}/log", b" more", os.O_APPEND)
        for _ in range(2):
            with fails(errno.EPERM):
                put(f"{union.path}/dir/new", b"new")
            with fails(errno.EPERM):
                os.unlink(f"{union.path}/log")
            put(f"{union.path}/log", b"!", os.O_APPEND)
            union.remount()
        assert Path(union.path, "log").read_text() == "log more!!"
        if transport == "direct":
            change(Path(union.path, "dir"), 0)
            change(Path(union.path, "log"), 0)
            put(f"{union.path}/dir/new", b"new")
            union.remount()
            os.unlink(f"{union.path}/log")
            os.unlink(f"{union.path}/dir/new")
    finally:
        union.close()
