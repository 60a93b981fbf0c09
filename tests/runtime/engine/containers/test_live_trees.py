"""export, diff and commit of a container that exchanges files for devices and pipes meanwhile, or ends."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.engine.containers.trees import live
from runtime.engine.watch import connect
from runtime.images.store import ImageStore
from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, wait_until
from tests.runtime.containers import LOOP, found, start

# renameat2(2) of each pair of names in turn, for ever.
EXCHANGE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
int main(int count, char **names) {
    for (;;)
        for (int i = 1; i + 1 < count; i += 2)
            renameat2(AT_FDCWD, names[i], AT_FDCWD, names[i + 1], RENAME_EXCHANGE);
}
"""

PLAIN = b"plain" * 800
SECRET = b"the device's own"

# Pairs of a regular file and something that must not be opened; two of the files are the image's.
SET_UP = """
mkdir /race; cd /race
for i in 0 1 2 3 4 5 6 7 8 9; do
    cp /plain b$i; mknod B$i b 7 {minor}
    cp /plain c$i; mknod C$i c 1 5
    cp /plain p$i; mkfifo P$i
done
mknod M b 7 {minor}; mkfifo G
echo ready
set -- /etc/motd M /etc/group G
for i in 0 1 2 3 4 5 6 7 8 9; do set -- "$@" b$i B$i c$i C$i p$i P$i; done
exec /exchange "$@"
"""


@pytest.fixture(scope="module")
def exchange(compiled: Callable[[str], str]) -> str:
    return compiled(EXCHANGE)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[int]:
    """The minor number of a loop device that is full of SECRET."""
    (tmp_path / "secret").write_bytes(SECRET * (1 << 16))
    attach = ["losetup", "--find", "--show", str(tmp_path / "secret")]
    name = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    yield os.minor(os.stat(name).st_rdev)
    subprocess.run(["losetup", "--detach", name], check=True)


@pytest.fixture
def racing(each_driver: Runtime, exchange: str, device: int, tmp_path: Path) -> Iterator[Runtime]:
    (tmp_path / "plain").write_bytes(PLAIN)
    volumes = ("-v", f"{tmp_path}/plain:/plain:ro", "-v", f"{exchange}:/exchange:ro")
    start(each_driver, "racing", SET_UP.format(minor=device), *volumes)
    yield each_driver
    each_driver("rm", "-f", "racing")


def check(archive: bytes) -> None:
    """What is a regular file in it has the content of one."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if member.isreg() and member.name.removeprefix("./").startswith("race/"):
                file = members.extractfile(member)
                assert file is not None
                assert file.read() in (PLAIN, b"hello from the image\n", b"root:x:0:\nstaff:x:50:app\napp:x:1000:\n")
    assert SECRET not in archive


@pytest.mark.needs("root", "loop")
def test_an_export_reads_no_device_and_no_pipe(racing: Runtime) -> None:
    for _ in range(10):
        done = subprocess.run(racing.command("export", "racing"), capture_output=True, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, b"")
        check(done.stdout)


@pytest.mark.needs("root", "loop")
def test_a_diff_reads_no_device_and_no_pipe(racing: Runtime) -> None:
    for _ in range(10):
        assert "A /race\n" in racing("diff", "racing")


@pytest.mark.needs("root", "loop")
@pytest.mark.parametrize("pause", ["true", "false"])
def test_a_commit_reads_no_device_and_no_pipe(racing: Runtime, pause: str) -> None:
    store = ImageStore(str(racing.root / "images"))
    for _ in range(5):
        racing("commit", f"--pause={pause}", "racing", "raced")
        try:
            with store.open_blob(store.get("raced").blobs[-1].digest) as blob:
                check(blob.read())
        finally:
            racing("rmi", "raced")


def test_what_is_looked_at_is_the_containers_own_root(each_driver: Runtime) -> None:
    """Whatever it has mounted over it, and as it is at this moment; nothing is done through the look."""
    script = "cp /bin/busybox /tool; chmod 4755 /tool; mknod /zero c 1 5; echo first >/file;"
    start(each_driver, "seen", f"{script} {LOOP}")
    container = found(each_driver, "seen")
    with live(container) as root:
        assert root is not None
        flags = os.fstatvfs(root).f_flag
        wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
        assert flags & wanted == wanted
        each_driver("exec", "seen", "sh", "-c", "echo second >/file; mount -t tmpfs x /bin 2>/dev/null; true")
        with open(os.open("file", os.O_RDONLY, dir_fd=root)) as file:
            assert file.read() == "second\n"
        assert os.stat("tool", dir_fd=root).st_mode & 0o7777 == 0o4755
        for name, flag in (("zero", os.O_RDONLY), ("file", os.O_WRONLY), ("new", os.O_CREAT | os.O_WRONLY)):
            with pytest.raises(OSError, match=r"Permission denied|Read-only file system"):
                os.open(name, flag, dir_fd=root)
        assert os.listdir(f"/proc/self/fd/{root}/proc") == []
    each_driver("rm", "-f", "seen")
    with live(container) as root:
        assert root is None


def test_a_task_that_has_much_else_to_tell(runtime: Runtime) -> None:
    runtime("run", "-d", "--network=none", "--name=seen", IMAGE, "yes")
    container = found(runtime, "seen")
    for _ in range(20):
        with live(container) as root:
            assert root is not None
    runtime("rm", "-f", "seen")


def test_a_task_that_does_not_answer(runtime: Runtime) -> None:
    start(runtime, "seen", LOOP)
    task_pid = found(runtime, "seen").state().task_pid
    os.kill(task_pid, signal.SIGSTOP)
    try:
        watch = connect(found(runtime, "seen"))
        assert watch is not None
        with watch, pytest.raises(TimeoutError):
            watch.look(0.2)
    finally:
        os.kill(task_pid, signal.SIGCONT)
        runtime("rm", "-f", "seen")


def test_a_container_that_ends_while_it_is_exported(each_driver: Runtime) -> None:
    """The reader has stopped reading. That is no fault of the container's, and no trouble at its end."""
    start(each_driver, "read", LOOP)
    with each_driver.popen("export", "read") as export:
        assert export.stdout is not None and export.stderr is not None
        beginning = export.stdout.read(512)
        each_driver("stop", "-t", "0", "read")
        assert each_driver.status("read").startswith("Exited (137)")
        assert found(each_driver, "read").state().error == ""
        if each_driver.driver == "fuse-aufs":
            assert re.search(r"a union still writes to .*: process \d+ \(", each_driver.refused("rm", "read"))
        with tarfile.open(fileobj=io.BytesIO(beginning + export.stdout.read())) as whole:
            assert "bin/busybox" in [name.removeprefix("./") for name in whole.getnames()]
        assert (export.wait(PATIENCE), export.stderr.read()) == (0, b"")
    each_driver.call("rm", "read")  # unless recovery was quicker: that the removal had begun is recorded
    wait_until(lambda: each_driver.ids() == [], "it is gone")


def test_a_container_that_removes_itself_while_it_is_exported(runtime: Runtime) -> None:
    """What could not be removed yet is, with the next command after the reader has gone."""
    start(runtime, "read", LOOP, "--rm")
    with runtime.popen("export", "read") as export:
        assert export.stdout is not None
        export.stdout.read(512)
        runtime("stop", "-t", "0", "read")
        export.stdout.close()
        export.wait(PATIENCE)
    wait_until(lambda: runtime.ids() == [], "it is gone")
