"""What a user can get wrong: one line that names the thing and what to do, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import TRANSPORTS, Union
from tests.unionfs.command import AS_NOBODY, UNIONFS, bare_dev, refused, run
from unionfs.linux import consts, mounts

pytestmark = [pytest.mark.needs("root"), pytest.mark.usefixtures("place")]


@pytest.fixture
def tmpfs_at() -> Iterator[Callable[..., None]]:
    """`tmpfs_at("up", fstype="ramfs")` mounts over a directory for the length of the test."""
    mounted: list[str] = []

    def mount(path: str, *, fstype: str = "tmpfs", flags: int = 0) -> None:
        mounts.mount(fstype, path, fstype, flags)
        mounted.append(path)

    yield mount
    for path in reversed(mounted):
        mounts.umount2(path, consts.MNT_DETACH)


# Branches and the mount point


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("absent:up", ["absent", "No such file", "create it"]),
        ("low:absent", ["absent", "No such file"]),
        ("low/file:up", ["low/file", "not a directory"]),
        ("low/file/x:up", ["low/file/x", "Not a directory"]),
        ("low:low", ["low", "given twice"]),
        ("low:up:low/../low", ["low", "given twice"]),
        ("low:mnt", ["mnt", "also the mount point"]),
        ("/:up", ["mnt", "inside the branch /"]),
    ],
)
def test_wrong_branches(spec: str, words: list[str]) -> None:
    said = refused("mount", spec, "mnt")
    assert all(word in said for word in words), said


def test_branches_inside_each_other() -> None:
    os.mkdir("mnt/below")
    assert "inside the mount point" in refused("mount", "low:mnt/below", "mnt")
    os.makedirs("tree/branch")
    assert "inside the branch" in refused("mount", "tree:tree/branch", "mnt")
    assert "inside the branch" in refused("mount", "tree/branch:tree", "mnt")
    assert "inside the branch" in refused("mount", "low:tree", "tree/branch")


def test_branches_inside_each_other_by_a_bind_mount(tmpfs_at: Callable[..., None]) -> None:
    tmpfs_at("up")
    os.makedirs("up/inner")
    os.mkdir("window")
    mounts.mount("up", "window", None, consts.MS_BIND)
    try:
        status, said = run("mount", "low:up:window/inner", "mnt")
        assert status == 1
        assert "inside the branch" in said
        assert "given twice" in run("mount", "window:up", "mnt")[1]
    finally:
        mounts.umount2("window")
        os.rmdir("up/inner")


@pytest.mark.parametrize(
    ("mountpoint", "words"),
    [
        ("absent", ["absent", "No such file", "mkdir"]),
        ("low/file", ["low/file", "not a directory"]),
    ],
)
def test_wrong_mount_points(mountpoint: str, words: list[str]) -> None:
    said = refused("mount", "low:up", mountpoint)
    assert all(word in said for word in words), said


def test_wrong_workdir() -> None:
    said = refused("mount", "-o", "lowerdir=low,upperdir=up,workdir=absent", "mnt")
    assert "workdir" in said
    assert "absent" in said


@pytest.mark.needs("program:setpriv")
def test_unreadable_branch_of_a_user(nobodys: Path) -> None:
    os.chmod("low", 0o700)
    said = refused("mount", "low:up=ro", "mnt", prefix=AS_NOBODY)
    assert "low" in said
    assert "cannot be read" in said


# Words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["MOUNT", "--help"]),
        (["remount"], ["remount", "--help"]),
        (["mount"], ["MOUNTPOINT", "--help"]),
        (["mount", "mnt"], ["no branches"]),
        (["mount", "low:up", "mnt", "more"], ["more"]),
        (["mount", "low:up", "mnt", "-o", "frobnicate"], ["'frobnicate'", "known are"]),
        (["mount", "low:up", "mnt", "--frobnicate"], ["--frobnicate"]),
        (["mount", "low:up=wr", "mnt"], ["'wr'", "rw, ro, rr"]),
        (["mount", "low=ro:up=ro", "mnt", "-o", "rw"], ["no branch is writable", "=rw"]),
        (["umount"], ["MOUNTPOINT"]),
        (["info"], ["MOUNTPOINT"]),
        (["mount", "low:up", "mnt", "-o", "transport=fuse"], ["transport=fuse", "auto, direct or pyfuse3"]),
        (["mount", "low:up", "mnt", "-o", "spin=1s"], ["spin=1s", "microseconds"]),
    ],
)
def test_wrong_words(arguments: list[str], words: list[str]) -> None:
    said = refused(*arguments, code=2)
    assert all(word.lower() in said.lower() for word in words), said


def test_help_names_the_three_forms() -> None:
    done = subprocess.run([*UNIONFS, "mount", "--help"], capture_output=True, text=True, check=True)
    for word in ("LOWER:UPPER", "br=/UP=rw:/LOW=ro", "lowerdir=A:B,upperdir=U,workdir=W"):
        assert word in done.stdout


def test_log_that_cannot_be_written() -> None:
    said = refused("mount", "low:up", "mnt", "--log", "absent/log")
    assert "absent/log" in said
    assert "log" in said


# The writable branch's file system


def test_writable_branch_without_xattrs(tmpfs_at: Callable[..., None]) -> None:
    tmpfs_at("up", fstype="ramfs")
    said = refused("mount", "low:up", "mnt")
    assert "extended attributes" in said
    assert "mark it =ro" in said


def test_writable_branch_on_a_read_only_file_system(tmpfs_at: Callable[..., None]) -> None:
    tmpfs_at("up", flags=consts.MS_RDONLY)
    said = refused("mount", "low:up", "mnt")
    assert "read-only file system" in said
    assert "=ro" in said


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("transport", ["auto"])
def test_a_branch_that_another_union_writes_to(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    union = mount_union("other-low", "other-up")
    os.mkdir("elsewhere")
    status, said = run("mount", f"low:{union.upper}", "elsewhere")
    assert status == 1
    assert "another union writes to this branch" in said
    assert said.count("\n") == 1


# Mounting


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("transport", ["auto"])
def test_mounted_already(mount_union: Callable[..., Union]) -> None:
    union = mount_union("low2", "up2")
    status, said = run("mount", "low:up", union.path)
    assert (status, said) == (1, f"unionfs: {union.path}: already mounted; run 'unionfs umount {union.path}' first\n")


def test_no_union_there() -> None:
    for where in ("mnt", "absent", "low/file"):
        assert "no union is mounted there" in refused("umount", where)
    for where in ("mnt", "low/file", "low"):
        assert "no union is mounted there" in refused("info", where)
    assert refused("info", "absent") == "unionfs: absent: No such file or directory\n"


@pytest.mark.needs("program:unshare")
def test_no_dev_fuse() -> None:
    said = refused("mount", "low:up", "mnt", prefix=bare_dev())
    assert said == "unionfs: /dev/fuse: not found: try 'modprobe fuse'\n"


@pytest.mark.needs("fuse", "program:setpriv")
def test_root_without_the_capability() -> None:
    said = refused("mount", "low:up", "mnt", prefix=["setpriv", "--bounding-set=-sys_admin"])
    assert "CAP_SYS_ADMIN" in said


@pytest.mark.needs("fuse", "program:setpriv")
def test_only_root_is_handed_a_mount(nobodys: Path) -> None:
    ours, theirs = socket.socketpair()
    words = [*AS_NOBODY, *UNIONFS, "mount", "low:up", "--hand-over", "0"]
    with ours, theirs:
        done = subprocess.run(words, stdin=theirs.fileno(), capture_output=True, text=True, timeout=60, check=False)
    said = "unionfs: detached mount: only root can have a mount that is attached nowhere\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.needs("fuse", "program:unshare", "program:setpriv", "program:fusermount3")
def test_not_root(nobodys: Path) -> None:
    """A user's mount goes through fusermount3, and its refusals come out in one line."""
    prefix = [*bare_dev(), *AS_NOBODY]
    assert "fuse device not found" in refused("mount", "low:up", "mnt", prefix=prefix)
    prefix = [*bare_dev("mknod -m 666 /dev/fuse c 10 229 && "), *AS_NOBODY]
    with open("/etc/fuse.conf", encoding="ascii") as conf:
        if not any(line.strip() == "user_allow_other" for line in conf):
            assert "user_allow_other" in refused("mount", "low:up", "mnt", "-o", "allow_other", prefix=prefix)
    nowhere = ["env", "PATH=/nonexistent", shutil.which("setpriv") or "setpriv", *AS_NOBODY[1:]]
    assert "fusermount3 is not installed" in refused("mount", "low:up", "mnt", prefix=nowhere)


@pytest.mark.needs("fuse", "program:unshare", "program:setpriv", "program:fusermount3")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_users_mount(nobodys: Path, transport: str) -> None:
    """By the descriptor that fusermount3 hands over. The kernel takes no files from users, and info says so."""
    os.mkdir("run")
    for path in ("run", "low/file"):
        os.chown(path, 65534, 65534)
    prefix = [*bare_dev("mknod -m 666 /dev/fuse c 10 229 && "), *AS_NOBODY, "env", f"XDG_RUNTIME_DIR={nobodys}/run"]
    script = (
        f'set -e; "$@" mount -o transport={transport} low:up mnt; "$@" info --json mnt; "$@" info mnt >&2;'
        ' echo new >mnt/made; mv mnt/made mnt/moved; echo more >>mnt/file; cat mnt/moved mnt/file;'
        ' grep " $PWD/mnt fuse" /proc/mounts; "$@" umount mnt; ls run/fuse-aufs/mounts'
    )
    done = subprocess.run(
        [*prefix, "sh", "-c", script, "sh", *UNIONFS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    facts, end = json.JSONDecoder().raw_decode(done.stdout)
    assert facts["transport"]["name"] == transport
    assert not facts["passthrough"]["enabled"]
    new, changed, mount, *sockets = done.stdout[end:].split("\n")[1:-1]
    assert (new, changed) == ("new", "contentmore")
    assert "nosuid,nodev" in mount
    assert "allow_other" not in mount
    assert sockets == []
    assert "Passthrough:  no: " + ("it takes CAP_SYS_ADMIN" if transport == "direct" else "") in done.stderr
    assert (nobodys / "up" / "moved").read_text() == "new\n"
    assert (nobodys / "up" / "moved").stat().st_uid == 65534
