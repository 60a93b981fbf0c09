"""Unmounting a union and then the file system of its branches: when the one is gone the other is free."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import Server
from tests.mounting import TRANSPORTS
from tests.unionfs.waiting import wait_until
from unionfs.linux import consts, mounts
from unionfs.transport import serving

pytestmark = [pytest.mark.needs("fuse", "tmpfs", "trusted-xattr"), pytest.mark.parametrize("transport", TRANSPORTS)]

PROGRAM = os.path.join(sysconfig.get_path("scripts"), "unionfs")


@pytest.fixture
def branches(tmp_path: Path) -> Iterator[Path]:
    """A file system of their own."""
    path = tmp_path / "branches"
    path.mkdir()
    mounts.mount("branches", str(path), "tmpfs")
    for name in ("low", "up"):
        (path / name).mkdir()
    (path / "low" / "f").write_text("low")
    yield path
    if mounts.mounted_at(str(path)) is not None:
        mounts.umount2(str(path), consts.MNT_DETACH)


def test_the_branches_come_first(
    branches: Path, tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """umount(2) waits for no server: all that this still has to do comes after it has let go of them."""
    reader, writer = os.pipe()
    monkeypatch.setattr(serving.Unmounter, "detach", lambda self, identity: os.read(reader, 1))
    path = tmp_path / "mnt"
    path.mkdir()
    server = Server(str(branches / "low"), str(branches / "up"), str(path), str(tmp_path / "log"), transport=transport)
    try:
        (path / "f").write_text("up")
        mounts.umount2(str(path))
        wait_until(lambda: unmounted(branches))
        assert os.waitpid(server.pid, os.WNOHANG) == (0, 0), "it has come to its end"
        os.write(writer, b"x")
        server.pid, pid = 0, server.pid
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        server.dispose()
        os.close(reader)
        os.close(writer)


def unmounted(path: Path) -> bool:
    try:
        mounts.umount2(str(path))
    except OSError:
        return False
    return True


# In a mount namespace of its own: a copy of the mount in somebody else's would keep it.
SCRIPT = """
set -e
mount --make-rprivate /
mount -t overlay -o lowerdir=/usr/sbin,upperdir=sbin,workdir=work none /usr/sbin
ln -s "$1" /usr/sbin/umount.fuse.unionfs
for turn in 1 2 3; do
    mount -t tmpfs branches branches
    mkdir branches/low branches/up
    echo low >branches/low/f
    "$1" mount -o "transport=$2" branches/low:branches/up mnt
    echo up >mnt/f
    umount mnt
    umount branches
done
mkdir branches/up
"$1" mount branches/up mnt
cd mnt
! umount ../mnt
mountpoint -q ../mnt
umount -l ../mnt
! mountpoint -q ../mnt
"""


@pytest.mark.needs("overlay", "program:unshare")
def test_by_umount8(branches: Path, transport: str) -> None:
    """With the program that it looks for it waits. In use it is refused; -l is done as ever."""
    for name in ("branches", "mnt", "sbin", "work"):
        (branches / name).mkdir()
    words = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", PROGRAM, transport]
    done = subprocess.run(words, cwd=branches, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
