"""Random trees: what is done to one, step by step, on a driver that is opened for it. Used by tests of properties."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from hypothesis import strategies as st

from drivers.api import Snapshotter
from drivers.catalog import open_driver
from drivers.diff import write_diff

DRIVERS = {"fuse-aufs": "fuse", "overlay2": "overlay", "vfs": "root"}
ACL = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff 20000400ffffffff")

# Few names, so that operations meet; what is hard to write down in an archive is among them.
NAMES = st.sampled_from([b"a", b"b", b"d", b"e", "ü".encode(), b"\xff=%\n", b"n" * 120])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
# None of them is another one cut to its second, which Docker's rule takes for the same.
TIMES = st.sampled_from([0, 10**9, 1_600_000_000_123_456_789, -1_500_000_000, 4_102_444_800_000_000_001])
CONTENTS = st.sampled_from([b"", b"x", b"y", b"x" * 5000, bytes(10_000) + b"x"])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), PATHS, CONTENTS),
    st.tuples(st.just("write"), PATHS, CONTENTS),
    st.tuples(st.just("mkdir"), PATHS, st.just(None)),
    st.tuples(st.just("mkdir"), PATHS, st.just(None)),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("symlink"), PATHS, st.sampled_from([b"a", b"/", b"\xff", b"t" * 150])),
    st.tuples(st.just("node"), PATHS, st.sampled_from([(stat.S_IFIFO, 0), (stat.S_IFCHR, 263), (stat.S_IFBLK, 1792)])),
    st.tuples(st.just("remove"), PATHS, st.just(None)),
    st.tuples(st.just("chmod"), st.one_of(PATHS, st.just(b".")), st.sampled_from([0o755, 0o700, 0o1777, 0o4711])),
    st.tuples(st.just("chown"), PATHS, st.sampled_from([0, 5, 3_000_000_000])),
    st.tuples(st.just("xattr"), st.one_of(PATHS, st.just(b".")), st.sampled_from([b"", b"1", b"\0=\n\xff"])),
    st.tuples(st.just("acl"), PATHS, st.sampled_from(["access", "default"])),
    st.tuples(st.just("utime"), PATHS, TIMES),
)
Script: TypeAlias = list[tuple[str, bytes, object]]
SCRIPTS = st.lists(OPERATIONS, min_size=1, max_size=14)


def perform(root: str, script: Script) -> None:
    """Do what can be done of it. Operations that a driver refuses (EXDEV) are left out."""
    base = os.fsencode(root)
    for verb, name, argument in script:
        path = os.path.join(base, name)
        with contextlib.suppress(OSError):
            _perform(base, verb, path, argument)


def _perform(base: bytes, verb: str, path: bytes, argument: object) -> None:
    match verb, argument:
        case "write", bytes(content):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644), "wb") as file:
                file.truncate(0)
                file.write(content)
        case "mkdir", _:
            os.mkdir(path)
        case "link", bytes(other):
            os.link(path, os.path.join(base, other), follow_symlinks=False)
        case "rename", bytes(other):
            os.rename(path, os.path.join(base, other))
        case "symlink", bytes(target):
            os.symlink(target, path)
        case "node", (int(kind), int(device)):
            os.mknod(path, kind | 0o640, device)
        case "remove", _:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        case "chmod", int(mode):
            if not stat.S_ISLNK(os.lstat(path).st_mode):
                os.chmod(path, mode)
        case "chown", int(owner):
            os.chown(path, owner, owner, follow_symlinks=False)
        case "xattr", bytes(value):
            if value:
                os.setxattr(path, "user.note", value, follow_symlinks=False)
            else:
                os.removexattr(path, "user.note", follow_symlinks=False)
        case "acl", str(which):
            os.setxattr(path, f"system.posix_acl_{which}", ACL, follow_symlinks=False)
        case "utime", int(time):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.utime(path, ns=(time, time), follow_symlinks=False)


@contextlib.contextmanager
def opened(name: str, place: Path) -> Iterator[Snapshotter]:
    driver = open_driver(name, str(place))
    try:
        yield driver
        driver.cleanup()
        driver.check_invariants()
    finally:
        driver.close()
        shutil.rmtree(place, ignore_errors=True)


def archive(driver: Snapshotter, key: str) -> bytes:
    out = io.BytesIO()
    write_diff(driver, key, out.write)
    return out.getvalue()
