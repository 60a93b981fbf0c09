"""What the runtime mounts for itself, for export, commit and diff, is nobody else's: a container may have put anything
there."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.children import in_child
from tests.leaks import processes
from tests.runtime.conftest import PATIENCE, Runtime, wait_until
from tests.runtime.containers import LOOP, start
from unionfs.linux.mounts import mountinfo

PAGE = mmap.PAGESIZE

# What a hostile container leaves for a user of the host: programs and devices that are root's.
HOSTILE = (
    "cp /bin/busybox /evil; chmod 4755 /evil; mknod /disk b 7 0; chmod 666 /disk; mkdir -m 777 /open; "
    "dd if=/dev/urandom of=/big bs=1024k count=4 2>/dev/null;"
)
HARMLESS = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_RDONLY


@contextmanager
def stalled(runtime: Runtime, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose reader has stopped reading, with its trees open."""
    with runtime.popen(*words, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(512), process.stderr.read() if process.stderr else ""
            full = fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ) - 2 * PAGE
            wait_until(lambda: waiting(process) > full, "the pipe is full")
            yield process
        finally:
            process.kill()


def waiting(process: subprocess.Popen[bytes]) -> int:
    """The bytes that it has written and nobody has read."""
    assert process.stdout is not None
    (count,) = struct.unpack("i", fcntl.ioctl(process.stdout, termios.FIONREAD, bytes(4)))
    return int(count)


def root_of(pid: int) -> list[str]:
    """What the process has open of the container's tree, as paths that only root can follow."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        if os.path.isdir(path) and os.path.exists(f"{path}/evil"):
            found.append(path)
    return found


def tables() -> dict[int, set[str]]:
    """The mounts of every mount namespace that this run has a process in."""
    found: dict[int, set[str]] = {}
    for pid in map(str, ("self", *processes())):
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace not in found:
                found[namespace] = {f"{point.target} {point.fstype} {point.source}" for point in mountinfo(pid)}
        except OSError:
            continue  # no process, or gone
    return found


def servers() -> set[int]:
    """The processes that serve a union."""
    found = set()
    for pid in processes():
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"--hand-over" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


@pytest.fixture(params=["running", "exited"])
def hostile(request: pytest.FixtureRequest, each_driver: Runtime) -> Iterator[Runtime]:
    start(each_driver, "hostile", f"{HOSTILE} {LOOP}")
    wait_until(lambda: each_driver("exec", "hostile", "sh", "-c", "ls /big; true"), "all is there")
    if request.param == "exited":
        each_driver("stop", "-t", "0", "hostile")
    yield each_driver
    each_driver("rm", "-f", "hostile")


@pytest.mark.needs("root", "cgroups")
def test_nobody_gets_at_what_is_exported(hostile: Runtime) -> None:
    """Neither by a path, in any mount namespace, nor by the command's descriptors, with which nothing can be done."""
    before = tables()
    with stalled(hostile, "export", "hostile") as export:
        assert tables() == before
        roots = root_of(export.pid)
        assert roots
        for root in roots:
            assert os.statvfs(root).f_flag & HARMLESS == HARMLESS
            with pytest.raises(PermissionError):
                os.open(f"{root}/disk", os.O_RDONLY)

        def as_nobody() -> None:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            own = set(processes()) | {export.pid}
            for pid in own:
                for link in (f"/proc/{pid}/fd", f"/proc/{pid}/cwd/.", f"/proc/{pid}/root/."):
                    with pytest.raises((PermissionError, FileNotFoundError)):
                        os.listdir(link)
            for path in (*roots, *(f"{root}/evil" for root in roots)):
                with pytest.raises(PermissionError):
                    os.stat(path)
            for place in ("/tmp", "/run", str(hostile.root), str(hostile.state)):
                for directory, _, names in os.walk(place):
                    assert "evil" not in names, directory

        assert in_child(as_nobody).wait() == 0
    assert tables() == before


@pytest.mark.needs("root", "cgroups")
def test_an_export_that_is_killed_leaves_nothing(hostile: Runtime) -> None:
    before, running = tables(), servers()
    for number in (signal.SIGKILL, signal.SIGTERM):
        with stalled(hostile, "export", "hostile") as export:
            export.send_signal(number)
            export.wait(PATIENCE)
        wait_until(lambda: servers() == running, "a server has ended")
        assert tables() == before
    assert hostile("diff", "hostile").splitlines().count("A /evil") == 1
    # It can be removed at once, and exported again.
    with stalled(hostile, "export", "hostile") as export:
        export.kill()
    hostile("rm", "-f", "hostile")
    start(hostile, "hostile", LOOP)


@pytest.mark.needs("root", "cgroups")
def test_a_namespace_that_is_made_meanwhile(hostile: Runtime) -> None:
    """It holds nothing of what is exported: neither its server nor its disk."""
    with stalled(hostile, "export", "hostile") as export:
        holding = subprocess.Popen(["unshare", "-m", "cat"], stdin=subprocess.PIPE)
        try:
            mine = os.stat("/proc/self/ns/mnt").st_ino
            wait_until(lambda: os.stat(f"/proc/{holding.pid}/ns/mnt").st_ino != mine, "there is a namespace")
            export.kill()
            export.wait(PATIENCE)
            hostile("rm", "-f", "hostile")
            wait_until(lambda: not servers(), "the servers have ended")
        finally:
            holding.communicate()
    start(hostile, "hostile", LOOP)


@pytest.mark.needs("root", "cgroups")
def test_where_mounts_are_shared(hostile: Runtime, tmp_path: Path) -> None:
    """As on most machines: in a namespace whose mounts are, all goes as where they are private, and none is seen."""
    words = " ".join(hostile.command("export", "-o", str(tmp_path / "tar"), "hostile"))
    script = f"mount --make-rshared / && cat /proc/self/mountinfo >{tmp_path}/a && {words} && "
    script += f"cat /proc/self/mountinfo >{tmp_path}/b"
    subprocess.run(["unshare", "-m", "sh", "-c", script], check=True, timeout=PATIENCE)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert (tmp_path / "tar").stat().st_size > 4 << 20
