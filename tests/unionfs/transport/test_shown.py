"""What the table of mounts shows of a union: as its user wants it, whatever he writes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Union, unionfs
from tests.unionfs.command import AS_NOBODY, UNIONFS, bare_dev
from unionfs.linux import consts, mounts
from unionfs.transport import delivery, info
from unionfs.union.branch import Branch
from unionfs.union.identity import Identity

pytestmark = pytest.mark.needs("fuse")

HOSTILE = "a,b\\,c new\nline\ttab\r #\\040 é日\udcff 0 0 rw,max_read=1 - fuse.x (deleted)"
SUBTYPE = "my.own-fs_1+"


def options(source: str) -> str:
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    return f"fsname={escaped},subtype={SUBTYPE}"


def lines() -> list[bytes]:
    return Path("/proc/self/mounts").read_bytes().split(b"\n")


@pytest.mark.parametrize("transport", ["direct"])
@pytest.mark.parametrize("source", [HOSTILE, "-o", "x" * 255])
def test_roots(mount_union: Callable[..., Union], tmp_path: Path, source: str) -> None:
    before = lines()
    union = mount_union("low", "up", options=(options(source),))
    point = mounts.mount_of(union.path)
    assert point is not None
    assert (point.source, point.fstype) == (source, f"fuse.{SUBTYPE}")
    assert len(lines()) == len(before) + 1
    [line] = [line for line in lines() if os.fsencode(union.path) in line]
    assert len(line.split(b" ")) == 6
    assert {"default_permissions", "allow_other", "user_id=0"} <= set(point.super_options.split(","))
    assert [b["permission"] for b in info.ask(union.path)["branches"]] == ["rw", "ro"]
    with contextlib.closing(Branch.open(os.fsencode(union.path), "ro")) as branch:
        assert [source.lasting for source in Identity([branch]).sources[branch].values()] == [True]
    (tmp_path / "up2").mkdir()
    again = subprocess.run([*UNIONFS, "mount", f"{tmp_path}/up2", union.path], capture_output=True, text=True)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "already mounted" in again.stderr
    union.unmount()
    assert lines() == before


def test_a_handed_over_one(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fd = theirs.fileno()
            words = ["mount", f"{place}/up", "-o", options(HOSTILE), "--hand-over", str(fd)]
            subprocess.run([*UNIONFS, *words], pass_fds=[fd], check=True, timeout=30)
        mount, server = delivery.receive(ours)
    os.close(server)
    target = str(place / "mnt")
    mounts.move_mount(mount, "", consts.AT_FDCWD, target, consts.MOVE_MOUNT_F_EMPTY_PATH)
    os.close(mount)
    point = mounts.mount_of(target)
    assert point is not None
    assert (point.source, point.fstype) == (HOSTILE, f"fuse.{SUBTYPE}")
    unionfs("umount", target)


@pytest.mark.needs("program:unshare", "program:setpriv", "program:fusermount3")
def test_a_users(nobodys: Path) -> None:
    """By fusermount3, which reads one list of options: nothing of the name becomes another."""
    os.mkdir("run")
    os.chown("run", 65534, 65534)
    script = (
        'set -e; o=$1; shift; "$@" mount -o "$o" low:up mnt; "$@" info mnt >/dev/null; grep -a "$PWD/mnt" '
        '/proc/self/mountinfo; "$@" umount mnt'
    )
    prefix = [*bare_dev("mknod -m 666 /dev/fuse c 10 229 && "), *AS_NOBODY, "env", f"XDG_RUNTIME_DIR={nobodys}/run"]
    done = subprocess.run(
        [*prefix, "sh", "-c", script, "sh", options(HOSTILE), *UNIONFS], stdout=subprocess.PIPE, check=True, timeout=60
    )
    [line] = done.stdout.removesuffix(b"\n").split(b"\n")
    point = mounts._point(line.decode("utf-8", "surrogateescape"))
    assert (point.source, point.fstype) == (HOSTILE, f"fuse.{SUBTYPE}")
    assert "user_id=65534" in point.super_options
    assert "allow_other" not in point.super_options
