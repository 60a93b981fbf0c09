"""Who changes a file takes its set-ID bits off, or may keep them: the whole table, as on a plain directory of the same
file system and on kernel overlayfs (setattr_should_drop_suidgid(), fs/attr.c)."""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.contracts.posix.acl import ACCESS, HANDED_DOWN
from tests.contracts.posix.case import in_child
from tests.mounting import Union
from tests.trees import Dir, Entry, File, build
from unionfs.linux import consts, files, mounts, processes
from unionfs.union.privileges import Caller

pytestmark = pytest.mark.needs("fuse", "overlay", "tmpfs-xattr")

OWNER, OTHER, TEAM = 1000, 1001, 50
SIZE = 8192

MODES = (0o6755, 0o6777, 0o2767, 0o2666, 0o6666)
# user number, groups; None keeps root's.
WHO: Mapping[str, tuple[int | None, tuple[int, ...]]] = {
    "owner": (OWNER, ()), "owner and member": (OWNER, (TEAM,)), "member": (OTHER, (TEAM,)), "stranger": (OTHER, ()),
    "root": (None, ()), "root without CAP_FSETID": (None, ()),
    "root of a namespace": (None, ()), "root of a namespace without the group": (None, ()),
}  # fmt: skip
# As in user_namespaces(7): root is the owner, and not in the group.
MAPS: Mapping[str, tuple[str, str]] = {
    "root of a namespace": (f"0 {OWNER} 1", f"0 60000 1\n1 {TEAM} 1"),
    "root of a namespace without the group": (f"0 {OWNER} 1", "0 60000 1"),
}


def by(flags: int, change: Callable[[int], object]) -> Callable[[str], None]:
    def opened(path: str) -> None:
        fd = os.open(path, flags)
        try:
            change(fd)
        finally:
            os.close(fd)

    return opened


def enter_namespace(uid_map: str, gid_map: str) -> None:
    """Become root of a user namespace, whose maps another process has to write."""
    begun, begin = os.pipe()
    me = os.getpid()
    writer = os.fork()
    if writer == 0:
        failed = 1
        try:
            os.read(begun, 1)
            for kind, lines in (("uid", uid_map), ("gid", gid_map)):
                with open(f"/proc/{me}/{kind}_map", "w", encoding="ascii") as out:
                    out.write(lines)
            failed = 0
        finally:
            os._exit(failed)
    processes.unshare(consts.CLONE_NEWUSER)
    os.write(begin, b"x")
    assert os.waitpid(writer, 0)[1] == 0
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def mapped(fd: int) -> None:
    with mmap.mmap(fd, SIZE) as memory:
        memory[0] = 1
        memory.flush()


def copied(fd: int) -> None:
    source = os.open("/etc/passwd", os.O_RDONLY)
    try:
        os.sendfile(fd, source, 0, 4)
    finally:
        os.close(source)


CHANGES: Mapping[str, Callable[[str], object]] = {
    "open to write": by(os.O_WRONLY, lambda fd: None),
    "write": by(os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "write nothing": by(os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "append": by(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "read and write": by(os.O_RDWR, lambda fd: os.pwrite(fd, b"x", 3)),
    "open to truncate": by(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "truncate": lambda path: os.truncate(path, 1),
    "truncate to the same size": lambda path: os.truncate(path, SIZE),
    "ftruncate": by(os.O_RDWR, lambda fd: os.ftruncate(fd, 1)),
    "extend": by(os.O_RDWR, lambda fd: os.ftruncate(fd, 2 * SIZE)),
    "allocate": by(os.O_RDWR, lambda fd: files.fallocate(fd, 0, 0, 2 * SIZE)),
    "punch": by(os.O_RDWR, lambda fd: files.fallocate(fd, 3, 0, 4096)),  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    "copy a range": by(os.O_RDWR, lambda fd: os.copy_file_range(fd, fd, 10, 0, 4096)),
    "sendfile": by(os.O_WRONLY, copied),
    "map": by(os.O_RDWR, mapped),
    "chown to nobody else": lambda path: os.chown(path, -1, -1),
    "chown to the owner": lambda path: os.chown(path, OWNER, -1),
    "chgrp to the group": lambda path: os.chown(path, -1, TEAM),
    "chgrp to another": lambda path: os.chown(path, -1, OTHER),
    "touch": os.utime,
    "chmod": lambda path: os.chmod(path, 0o6777),
    "chmod g+s": lambda path: os.chmod(path, 0o2755),
    "chmod u-s": lambda path: os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~stat.S_ISUID),
    "set an ACL": lambda path: os.setxattr(path, ACCESS, HANDED_DOWN),
}
# Over pyfuse3 there is no fallocate; libfuse does not pass the flag by which the kernel says who may keep the bits.
MISSING = {"pyfuse3": ("allocate", "punch", "set an ACL")}

Said = dict[tuple[str, str, int], str]


def name(change: str, who: str, mode: int) -> str:
    return f"{change}-{who}-{mode:o}".replace(" ", "_")


def tree() -> dict[str, Entry]:
    return {name(change, who, mode): File("x" * SIZE, mode=mode, uid=OWNER, gid=TEAM)
            for change in CHANGES for who in WHO for mode in MODES}  # fmt: skip


def outcomes(top: str) -> Said:
    """Of each: the mode afterwards, or why it was refused."""
    said: Said = {}
    for who, (uid, groups) in WHO.items():

        def all_changes(who: str = who) -> list[str]:
            if who.endswith("CAP_FSETID"):
                processes.lose(consts.CAP_FSETID)
            if who in MAPS:
                enter_namespace(*MAPS[who])
            errors = []
            for change, act in CHANGES.items():
                for mode in MODES:
                    try:
                        act(f"{top}/{name(change, who, mode)}")
                        errors.append("")
                    except OSError as error:
                        errors.append(os.strerror(error.errno or 0))
            return errors

        errors = iter(in_child(all_changes, uid=uid, groups=groups))
        for change in CHANGES:
            for mode in MODES:
                left = stat.S_IMODE(os.stat(f"{top}/{name(change, who, mode)}").st_mode)
                said[change, who, mode] = f"{left:o} {next(errors)}"
    return said


PLACES = ("low", "up")


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="set-id-") as home:
        mounts.mount("set-id", home, "tmpfs")
        try:
            os.chmod(home, 0o755)
            yield home
        finally:
            mounts.umount2(home)


@pytest.fixture(scope="module")
def plain(home: str) -> Said:
    build(f"{home}/plain", tree())
    return outcomes(f"{home}/plain")


def merged_tree(top: str) -> str:
    for place in PLACES:
        build(f"{top}/{place}", {place: Dir(tree())})
    return f"lowerdir={top}/low,upperdir={top}/up,workdir={top}/work"


@pytest.fixture(scope="module")
def overlayfs(home: str) -> Iterator[Mapping[str, Said]]:
    options = merged_tree(f"{home}/overlay")
    build(f"{home}/overlay", {"work": {}, "merged": {}})
    mounts.mount("overlay", f"{home}/overlay/merged", "overlay", 0, options)
    try:
        yield {place: outcomes(f"{home}/overlay/merged/{place}") for place in PLACES}
    finally:
        mounts.umount2(f"{home}/overlay/merged")


@pytest.fixture(scope="module")
def union(home: str, transport: str) -> Iterator[Union]:
    merged_tree(f"{home}/{transport}")
    union = Union(f"{home}/{transport}", [f"{home}/{transport}/{place}" for place in PLACES], transport=transport)
    yield union.mount()
    union.close()


def also_right(plain: Said, key: tuple[str, str, int]) -> list[str]:
    """To FUSE the kernel says the same of a chown(2) of neither owner nor group, which takes the owner, and of a write
    that takes the bits, which takes permission to write. Who may do only one of them gets no error for the other."""
    change, who, mode = key
    if change != "chown to nobody else" or not plain[key].endswith("not permitted"):
        return []
    written = plain["write", who, mode]
    return [f"{mode:o} ", *([] if "denied" in written else [written])]


@pytest.mark.parametrize("place", PLACES)
def test_set_id_bits(
    union: Union, transport: str, plain: Said, overlayfs: Mapping[str, Said], place: str
) -> None:
    found = outcomes(f"{union.path}/{place}")
    differing = [
        f"{key[0]} by {key[1]}, {key[2]:o}: {found[key]}, but plain {plain[key]}, overlayfs {overlayfs[place][key]}"
        for key in found
        if found[key] not in (plain[key], overlayfs[place][key], *also_right(plain, key))
        and key[0] not in MISSING.get(transport, ())
    ]
    assert not differing, "\n".join([f"{len(differing)} of {len(found)} differ", *differing])


@pytest.mark.parametrize("uid", [0, OWNER])
def test_a_thread_that_acts_for_somebody_else(tmp_path: Path, uid: int) -> None:
    """/proc shows the credentials that a thread has, and not those it has put on for a while: an NFS server's has all
    capabilities, and the user whom it serves none."""
    build(str(tmp_path), {"file": File("", uid=OWNER, gid=TEAM)})
    caller = Caller(uid, OTHER, os.getpid())
    assert caller.has(consts.CAP_FSETID) == (uid == 0)
    assert caller.keeps_set_group_id(os.stat(tmp_path / "file")) == (uid == 0)
