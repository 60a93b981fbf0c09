"""What a user who is nobody can do with unions, root's and their own, by fusermount3: nothing to others."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import in_child
from tests.mounting import TRANSPORTS, Union, server_of
from tests.trees import build, whiteout_of
from tests.unionfs.command import AS_NOBODY, UNIONFS, bare_dev, refused
from tests.unionfs.long_names import LONG, LOWER, NAMES
from unionfs.linux import mounts
from unionfs.transport import control

pytestmark = pytest.mark.needs("fuse", "program:unshare", "program:setpriv", "program:fusermount3")

NOBODY, SOMEBODY = 65534, 65533
WITH_FUSE = bare_dev("mknod -m 666 /dev/fuse c 10 229 && ")


def call(*words: str, prefix: list[str] = AS_NOBODY) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*prefix, *words], capture_output=True, text=True, timeout=60, check=False)


def test_where_a_user_may_not_mount(nobodys: Path) -> None:
    """Over a directory of root's or of another's, or of branches that the user may not read: nothing is mounted."""
    prefix = [*WITH_FUSE, *AS_NOBODY]
    for name, owner in (("roots", 0), ("anothers", SOMEBODY)):
        os.mkdir(name)
        os.chown(name, owner, owner)
        said = refused("mount", "low:up", name, prefix=prefix)
        assert "no write access" in said or "Permission denied" in said or "not permitted" in said
    os.symlink("/etc", "link")
    refused("mount", "low:up", "link", prefix=prefix)
    os.mkdir("closed", 0o700)
    said = refused("mount", "closed:up", "mnt", prefix=prefix)
    assert "closed" in said
    said = refused("mount", "low:roots", "mnt", prefix=prefix)
    assert "roots" in said


@pytest.fixture
def roots(nobodys: Path) -> Iterator[Union]:
    """A union that root has mounted where everybody can get to, on a machine on which it is the first."""
    (nobodys / "root-up").mkdir()
    (nobodys / "root").mkdir()
    union = Union(str(nobodys / "root"), [str(nobodys / "low"), str(nobodys / "root-up")])
    mounts.mount("run", "/run", "tmpfs", 0, "mode=755")
    try:
        yield union.mount()
        union.close()
    finally:
        mounts.umount2("/run")


CONNECT = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except OSError as error:
    print(type(error).__name__, end="")
"""


def test_roots_mount_is_roots(roots: Union) -> None:
    """A user sees it and cannot end it, ask its server, or reach its socket."""
    server = server_of(roots.path)
    os.close(server.pidfd)
    assert call("cat", f"{roots.path}/file").stdout == "content"
    assert call(*UNIONFS, "umount", roots.path).returncode == 1
    assert call(*UNIONFS, "umount", roots.path, prefix=[*WITH_FUSE, *AS_NOBODY]).returncode == 1
    assert call("fusermount3", "-u", roots.path).returncode != 0
    assert call("fusermount3", "-u", "-z", roots.path).returncode != 0
    asked = call(*UNIONFS, "info", roots.path)
    assert asked.returncode == 1
    assert "cannot be reached" in asked.stderr
    [name] = os.listdir(control.directory())
    connected = call(sys.executable, "-c", CONNECT, f"{control.directory()}/{name}")
    assert (connected.returncode, connected.stdout) == (0, "PermissionError")
    assert call("kill", str(server.pid)).returncode != 0
    for name in ("fd", "mem", "environ", "root"):
        assert call("cat", f"/proc/{server.pid}/{name}").returncode != 0
        assert call("ls", f"/proc/{server.pid}/{name}/").returncode != 0
    assert call("sh", "-c", f"echo x >{roots.path}/new; rm -f {roots.path}/file; : >{roots.path}/file").returncode != 0
    assert sorted(os.listdir(roots.path)) == ["file"]
    assert Path(roots.path, "file").read_text() == "content"
    assert roots.mounted


WITHOUT = ["env", "-u", "XDG_RUNTIME_DIR"]
ANOTHERS = ["env", "XDG_RUNTIME_DIR=/run/user/0"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("environment", [WITHOUT, ANOTHERS], ids=["none", "anothers"])
def test_without_a_runtime_directory(nobodys: Path, transport: str, environment: list[str]) -> None:
    """Info and umount reach the server, also from an environment with another one; nobody else is answered."""
    (nobodys / "run").mkdir()
    os.chown(nobodys / "run", NOBODY, NOBODY)
    script = (
        f'set -e; "$@" mount -o transport={transport} low:up mnt; "$@" info mnt | head -1;'
        ' XDG_RUNTIME_DIR=$PWD/run "$@" info mnt | head -1; echo open; read -r line; "$@" umount mnt'
    )
    command = [*WITH_FUSE, *AS_NOBODY, *environment, "sh", "-c", script, "sh", *UNIONFS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = list(iter(process.stdout.readline, "open\n"))
        try:
            assert said == ["Mount point:  mnt\n"] * 2
            [address] = [line.split("@")[1].strip() for line in Path("/proc/net/unix").read_text().splitlines()
                         if f"@fuse-aufs/{NOBODY}/" in line]  # fmt: skip
            for uid, answered in ((NOBODY, True), (SOMEBODY, False)):
                prefix = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
                assert bool(call(sys.executable, "-c", ASK, address, prefix=prefix).stdout) == answered
        finally:
            process.stdin.write("\n")
            process.stdin.close()
            assert process.wait(60) == 0, said
    assert f"@fuse-aufs/{NOBODY}/" not in Path("/proc/net/unix").read_text()


ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect("\\0" + sys.argv[1])
    try:
        client.sendall(b"info\\n")
        print(client.recv(100).decode(), end="")
    except ConnectionError:
        pass
"""


def test_somebody_elses_server_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes the address before the server does gets nobody's trust."""
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(f"\0fuse-aufs/{NOBODY}/0:1.2")
        in_child(squatter.listen, uid=SOMEBODY)  # unix(7): the peer's credentials are those of who listened
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
        assert control.find("0:1.2") is None
        squatter.listen()
        server = control.find("0:1.2")
        assert server is not None, "root's is believed"
        server.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_users_mount_gives_no_rights(nobodys: Path, transport: str) -> None:
    """A set-user-ID program and a device of root's in its branches are none there; and nobody else gets in, root
    not either (fuse: allow_other is not given), so that no daemon can be led into it."""
    shutil.copy("/usr/bin/id", "low/id")
    os.chmod("low/id", 0o4755)
    os.mknod("low/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chown("low", 0, 0)
    os.mkdir("run")
    os.chown("run", NOBODY, NOBODY)
    script = (
        f'set -e; "$@" mount -o transport={transport},suid,dev low:up mnt; mnt/id -u; cat mnt/null 2>&1 || true;'
        ' grep " $PWD/mnt fuse" /proc/mounts; echo open; read -r line; "$@" umount mnt'
    )
    command = [*WITH_FUSE, *AS_NOBODY, "env", f"XDG_RUNTIME_DIR={nobodys}/run", "sh", "-c", script, "sh", *UNIONFS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line == "open\n":
                break
        try:
            namespace = f"/proc/{process.pid}/ns/mnt"
            for uid in (SOMEBODY, 0):
                become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
                looked = call("ls", str(nobodys / "mnt"), prefix=["nsenter", f"--mount={namespace}", *become])
                assert (looked.returncode != 0, looked.stdout) == (True, "")
                assert "Permission denied" in looked.stderr
        finally:
            process.stdin.write("\n")
            process.stdin.close()
            assert process.wait(60) == 0, said
    assert said[0] == f"{NOBODY}\n"
    assert "Permission denied" in said[1]
    assert "nosuid" in said[2] and "nodev" in said[2]
    assert not [point for point in mounts.mountinfo() if point.target.startswith(str(nobodys))]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_names_of_any_length(nobodys: Path, transport: str) -> None:
    """The same on a mount of his own, by his own server; a kernel before 5.8 would not let him make the devices."""
    build(str(nobodys / "low"), LOWER)
    for directory, directories, files in os.walk(nobodys / "low"):
        for name in (".", *directories, *files):
            os.chown(os.path.join(directory, name), 65534, 65534)
    os.mkdir("run")
    os.chown("run", 65534, 65534)
    script = (
        f'set -e; "$@" mount -o transport={transport} low:up mnt; rm -r mnt/d mnt/h; mkdir mnt/d;'
        f' mv mnt/{LONG} mnt/f/{NAMES[0]}; rm mnt/f/{NAMES[1]}; mkdir mnt/f/{NAMES[1]}; rm mnt/f/{NAMES[2]};'
        ' "$@" umount mnt; "$@" mount low:up mnt; find mnt -type f -printf "%P\\n" | sort >listed;'
        ' rm -r mnt/*; find mnt -mindepth 1; "$@" umount mnt'
    )
    os.chmod(nobodys, 0o777)
    prefix = [*bare_dev("mknod -m 666 /dev/fuse c 10 229 && "), *AS_NOBODY, "env", f"XDG_RUNTIME_DIR={nobodys}/run",
              "LC_ALL=C.UTF-8"]  # fmt: skip
    done = subprocess.run(
        [*prefix, "sh", "-c", script, "sh", *UNIONFS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (nobodys / "listed").read_text().split() == sorted(["file", "short", f"f/{NAMES[0]}", f"f/{NAMES[3]}"])
    for name in (LONG, "d", "f"):
        assert os.path.lexists(nobodys / "up" / whiteout_of(name))
    entry = os.lstat(nobodys / "up" / LONG)
    assert (stat.S_ISCHR(entry.st_mode), entry.st_rdev) == (True, 0)
