"""A user who is nobody tries every change of every kind of file, and gets from a union what kernel overlayfs gives:
the same errors, and the same owner, mode and content afterwards.

What may be done to whom is decided in many places of a file system, and a table by hand (tests/contracts/posix) has the
cases that somebody thought of; this has all combinations.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.posix.acl import ACCESS, DEFAULT, HANDED_DOWN
from tests.contracts.posix.case import in_child
from tests.contracts.posix.xattrs import CAPABILITY
from tests.mounting import Union
from tests.trees import Dir, Entry, File, Special, Symlink, build
from unionfs.linux import mounts

pytestmark = pytest.mark.needs("fuse", "overlay", "user-xattr", "trusted-xattr")

NOBODY, TEAM = 65534, 50
TRUSTED = {"trusted.secret": b"s", "user.shown": b"u"}


def acl(*entries: tuple[int, int, int]) -> bytes:
    """(tag, permissions, id) as in linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF
FOR_NOBODY = acl((1, 6, NONE), (2, 6, NOBODY), (4, 0, NONE), (16, 6, NONE), (32, 0, NONE))
AGAINST_NOBODY = acl((1, 6, NONE), (2, 0, NOBODY), (4, 6, NONE), (16, 6, NONE), (32, 6, NONE))

FILES: Mapping[str, Entry] = {
    "readable": File("content", mode=0o644, xattrs=TRUSTED),
    "everybodys": File("content", mode=0o666, xattrs={"user.shown": b"u"}),
    "private": File("content", mode=0o600),
    "suid": File("content", mode=0o4777),
    "sgid": File("content", mode=0o2777, gid=TEAM),
    "capable": File("content", mode=0o777, xattrs={"security.capability": CAPABILITY}),
    "mine": File("content", mode=0o600, uid=NOBODY, gid=NOBODY),
    "mine, closed": File("content", mode=0o000, uid=NOBODY, gid=NOBODY),
    "mine, suid": File("content", mode=0o4755, uid=NOBODY, gid=NOBODY),
    "teams": File("content", mode=0o660, gid=TEAM),
    "by acl": File("content", mode=0o660, xattrs={ACCESS: FOR_NOBODY}),
    "not by acl": File("content", mode=0o666, xattrs={ACCESS: AGAINST_NOBODY}),
    "link": Symlink("elsewhere"),
    "fifo": Special(mode=0o622),
    "device": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o666),
}
INSIDE: Mapping[str, Entry] = {"theirs": File("t", mode=0o666), "own": File("o", uid=NOBODY, gid=NOBODY), "sub": {}}
DIRECTORIES: Mapping[str, Entry] = {
    "fixed": Dir(INSIDE, mode=0o755),
    "open": Dir(INSIDE, mode=0o777),
    "sticky": Dir(INSIDE, mode=0o1777),
    "teams": Dir(INSIDE, mode=0o2777, gid=TEAM),
    "closed": Dir(INSIDE, mode=0o700),
    "passed": Dir(INSIDE, mode=0o711),
    "mine": Dir(INSIDE, mode=0o755, uid=NOBODY, gid=NOBODY),
    "inheriting": Dir(INSIDE, mode=0o777, xattrs={DEFAULT: HANDED_DOWN}),
}


def written(path: str, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o666)
    try:
        os.write(fd, b"NEW")
    finally:
        os.close(fd)


def read(path: str, flags: int = 0) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def flagged(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, 0x40086602, struct.pack("l", 0x40))  # FS_IOC_SETFLAGS, FS_NODUMP_FL
    finally:
        os.close(fd)


Operation = Callable[[str], Any]

# Of a file, in a directory of its own.
CHANGES: Mapping[str, Operation] = {
    "read": read,
    "read without a trace": lambda path: read(path, os.O_NOATIME),
    "write": lambda path: written(path, 0),
    "append": lambda path: written(path, os.O_APPEND),
    "create over": lambda path: written(path, os.O_CREAT),
    "create anew": lambda path: written(path, os.O_CREAT | os.O_EXCL),
    "write anew": lambda path: written(path, os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 2),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chmod with set-ID bits": lambda path: os.chmod(path, 0o6777),
    "take": lambda path: os.chown(path, NOBODY, -1, follow_symlinks=False),
    "give away": lambda path: os.chown(path, 0, -1, follow_symlinks=False),
    "give to the team": lambda path: os.chown(path, -1, TEAM, follow_symlinks=False),
    "touch": lambda path: os.utime(path, follow_symlinks=False),
    "date": lambda path: os.utime(path, ns=(1, 1), follow_symlinks=False),
    "set a user's attribute": lambda path: os.setxattr(path, "user.new", b"1", follow_symlinks=False),
    "remove a user's attribute": lambda path: os.removexattr(path, "user.shown", follow_symlinks=False),
    "set a trusted attribute": lambda path: os.setxattr(path, "trusted.new", b"1", follow_symlinks=False),
    "read a trusted attribute": lambda path: os.getxattr(path, "trusted.secret", follow_symlinks=False),
    "list attributes": lambda path: sorted(os.listxattr(path, follow_symlinks=False)),
    "set a capability": lambda path: os.setxattr(path, "security.capability", CAPABILITY, follow_symlinks=False),
    "set an ACL": lambda path: os.setxattr(path, ACCESS, FOR_NOBODY, follow_symlinks=False),
    "set flags": flagged,
    "access": lambda path: [os.access(path, how, effective_ids=True) for how in (os.R_OK, os.W_OK, os.X_OK)],
}
# Of a name; the directory that it is in decides as well.
NAMES: Mapping[str, Operation] = {
    "unlink": os.unlink,
    "rename": lambda path: os.rename(path, f"{path}-new"),
    "rename over another's": lambda path: os.rename(path, f"{os.path.dirname(path)}/theirs"),
    "rename over one's own": lambda path: os.rename(path, f"{os.path.dirname(path)}/own"),
    "be replaced by one's own": lambda path: os.rename(f"{os.path.dirname(path)}/own", path),
    "link": lambda path: os.link(path, f"{path}-new", follow_symlinks=False),
}
# Of a directory and what is in it.
BELOW: Mapping[str, Operation] = {
    "list": lambda path: sorted(os.listdir(path)),
    "look": lambda path: os.stat(f"{path}/theirs").st_uid,
    "create": lambda path: written(f"{path}/new", os.O_CREAT),
    "create unnamed": lambda path: os.close(os.open(path, os.O_TMPFILE | os.O_RDWR, 0o666)),
    "mkdir": lambda path: os.mkdir(f"{path}/new", 0o2777),
    "symlink": lambda path: os.symlink("x", f"{path}/new"),
    "mkfifo": lambda path: os.mkfifo(f"{path}/new", 0o666),
    "mknod": lambda path: os.mknod(f"{path}/new", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "mknod of a whiteout": lambda path: os.mknod(f"{path}/new", stat.S_IFCHR | 0o666, os.makedev(0, 0)),
    "unlink another's": lambda path: os.unlink(f"{path}/theirs"),
    "unlink one's own": lambda path: os.unlink(f"{path}/own"),
    "rmdir another's": lambda path: os.rmdir(f"{path}/sub"),
    "rename another's": lambda path: os.rename(f"{path}/theirs", f"{path}/new"),
    "move another's out": lambda path: os.rename(f"{path}/theirs", f"{path}-new"),
    "chmod it": lambda path: os.chmod(path, 0o7777),
    "take it": lambda path: os.chown(path, NOBODY, -1),
    "hand down an ACL": lambda path: os.setxattr(path, DEFAULT, HANDED_DOWN),
    "set an attribute of it": lambda path: os.setxattr(path, "user.new", b"1"),
    "rename it": lambda path: os.rename(path, f"{path}-new"),
    "enter it": os.chdir,
}

Probe = tuple[Entry, str, int, Operation]  # an entry, its name, the mode of its parent, what is done to it


def probes() -> dict[str, Probe]:
    found: dict[str, Probe] = {}
    for name, entry in FILES.items():
        for what, change in CHANGES.items():
            found[f"{what}: {name}"] = (entry, name, 0o777, change)
        for mode in (0o777, 0o1777, 0o755):
            for what, change in NAMES.items():
                found[f"{what}: {name} in a directory {mode:o}"] = (entry, name, mode, change)
    for name, entry in DIRECTORIES.items():
        for what, change in BELOW.items():
            found[f"{what}: the directory {name}"] = (entry, name, 0o777, change)
    return found


PROBES = probes()

# Of a node the kernel asks whose it is before it finds that it has no flags; overlayfs's nodes do not come that far.
# Over pyfuse3 there are neither flags nor unnamed files.
OTHERWISE = {"direct": ("set flags: device",), "pyfuse3": ("set flags:", "create unnamed:")}


def tree() -> dict[str, Entry]:
    return {
        str(number): Dir({**INSIDE, name: entry}, mode=mode)
        for number, (entry, name, mode, _) in enumerate(PROBES.values())
    }


def outcomes(place: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Of each probe: what it said, in the words of errno if it was refused, and what is there afterwards."""

    def try_all() -> list[Any]:
        os.umask(0o027)
        said: list[Any] = []
        for number, (_, name, _, change) in enumerate(PROBES.values()):
            os.chdir("/")
            try:
                said.append(change(f"{place}/{number}/{name}"))
            except OSError as error:
                said.append(errno.errorcode[error.errno or 0])
        return said

    said = in_child(try_all, uid=NOBODY, groups=(TEAM,))
    return {probe: (said[number], look(f"{place}/{number}")) for number, probe in enumerate(PROBES)}


def look(top: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            content = Path(path).read_bytes() if stat.S_ISREG(info.st_mode) else b""
            attributes = {each: os.getxattr(path, each, follow_symlinks=False)
                          for each in os.listxattr(path, follow_symlinks=False)}
            found[os.path.relpath(path, top)] = (
                oct(info.st_mode), info.st_uid, info.st_gid, content, attributes, info.st_mtime_ns == 1
            )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    """Where another user can get to, and in memory where that can hold all there is to test."""
    with tempfile.TemporaryDirectory(prefix="unprivileged-") as home:
        mounts.mount("unprivileged", home, "tmpfs")
        try:
            os.chmod(home, 0o755)
            yield home
        finally:
            mounts.umount2(home)


PLACES = ("low", "up")


@pytest.fixture(scope="module")
def expected(home: str) -> dict[str, dict[str, tuple[Any, dict[str, Any]]]]:
    """Of kernel overlayfs, for files that lie in the lower layer and for those in the upper one."""
    for name in PLACES:
        build(f"{home}/overlay/{name}/{name}", tree())
    build(f"{home}/overlay", {"work": {}, "merged": {}})
    merged = f"{home}/overlay/merged"
    layers = ",".join(f"{name}={home}/overlay/{place}" for name, place in
                      (("lowerdir", "low"), ("upperdir", "up"), ("workdir", "work")))  # fmt: skip
    mounts.mount("overlay", merged, "overlay", 0, f"{layers},redirect_dir=on")
    try:
        return {name: outcomes(f"{merged}/{name}") for name in PLACES}
    finally:
        mounts.umount2(merged)


@pytest.fixture(scope="module")
def union(home: str, transport: str) -> Iterator[Union]:
    branches = [f"{home}/{transport}/{name}" for name in PLACES]
    for name, branch in zip(PLACES, branches, strict=True):
        build(f"{branch}/{name}", tree())
    union = Union(f"{home}/{transport}", branches, transport=transport).mount()
    yield union
    union.close()


@pytest.mark.needs("tmpfs-xattr")
@pytest.mark.parametrize("place", PLACES)
def test_as_overlayfs(
    union: Union, transport: str, expected: dict[str, dict[str, tuple[Any, dict[str, Any]]]], place: str
) -> None:
    found = outcomes(f"{union.path}/{place}")
    lines = [
        f"{probe}\n  overlayfs {expected[place][probe]}\n  union     {found[probe]}"
        for probe in PROBES
        if found[probe] != expected[place][probe] and not probe.startswith(OTHERWISE[transport])
    ]
    assert not lines, "\n".join([f"{len(lines)} of {len(PROBES)} differ", *lines])


def test_the_table_is_worth_it(expected: dict[str, dict[str, tuple[Any, dict[str, Any]]]]) -> None:
    """Both answers come often, and the kinds of refusal that there are."""
    said = [answer for answer, _ in expected["low"].values()]
    refused = {word for word in said if isinstance(word, str)}
    assert len(said) > 600
    assert {"EACCES", "EPERM", "EEXIST", "ENODATA"} <= refused
    assert 200 < sum(isinstance(word, str) for word in said) < len(said) - 200
