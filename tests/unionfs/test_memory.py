"""The server's memory: constant over files that come and go, however many; and when it runs out the kernel ends the
server, which loses nothing that was there.

MEMORY_CYCLES=100000 has more of them come and go (scripts/nightly).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.oci.cgroups import Cgroup, hierarchies
from runtime.oci.resources import NONE
from tests.children import in_child
from tests.mounting import Union, server_of, unionfs
from tests.trees import assert_same, build, read
from tests.unionfs.waiting import wait_until
from unionfs.linux import consts, mounts
from unionfs.transport import info

pytestmark = pytest.mark.needs("fuse", "tmpfs-xattr", "trusted-xattr")

# So many that the smallest object left of each would be seen: what was measured is below 24 KiB, for 30,000 as well.
CYCLES = int(os.environ.get("MEMORY_CYCLES", "2500"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Branches in memory: it is the server that is looked at."""
    path = tmp_path / "disk"
    path.mkdir()
    mounts.mount("memory", str(path), "tmpfs")
    yield path
    mounts.umount2(str(path))


def come_and_go(top: str, cycles: range) -> None:
    """Names that were never there before, one after another; some of each kind, some over a lower name."""
    for number in cycles:
        path = f"{top}/name-{number}"
        if number % 8 == 7:
            os.mkdir(path)
            os.rmdir(path)
        else:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, b"x")
            if number % 2:
                os.unlink(path)
            os.close(fd)
        if number % 8 == 0:
            os.rename(path, f"{path}-moved")
            os.unlink(f"{path}-moved")
        elif not number % 2:
            os.unlink(path)
        if number % 16 == 0:
            with contextlib.suppress(FileNotFoundError):
                os.stat(f"{top}/missing-{number}")
            os.close(os.open(f"{top}/lower", os.O_CREAT | os.O_WRONLY))
            os.unlink(f"{top}/lower")


def held(union: Union, pid: int) -> int:
    """Bytes that are the server's own, when all that the kernel can forget of the mount is forgotten."""
    mounts.mount("none", union.path, None, consts.MS_REMOUNT)  # drops what is cached (reconfigure_super(), fs/super.c)
    wait_until(lambda: info.ask(union.path)["nodes"] == 1)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel does not say")


def test_files_that_come_and_go(tmp_path: Path, disk: Path, mount_union: Callable[..., Union]) -> None:
    build(str(disk / "low"), {"d": {"lower": "lower", "kept": "kept"}})
    union = mount_union("disk/low", "disk/up")
    server = info.ask(union.path)
    descriptors = len(os.listdir(f"/proc/{server['pid']}/fd"))
    top = f"{union.path}/d"
    come_and_go(top, range(1000))  # until what it keeps in stock is there
    before = held(union, server["pid"])
    come_and_go(top, range(1000, 1000 + CYCLES))
    grown = held(union, server["pid"]) - before
    assert grown < 64 << 10, f"{grown / CYCLES:.0f} bytes a cycle are left"
    assert info.ask(union.path)["open_files"] == 0
    assert len(os.listdir(f"/proc/{server['pid']}/fd")) <= descriptors + 4
    assert os.listdir(top) == ["kept"]
    assert sorted(os.listdir(disk / "up/d")) == [".wh.lower"]


@pytest.fixture
def cgroup() -> Iterator[tuple[Cgroup, str]]:
    """A control group, and its directory in the hierarchy that limits memory."""
    hierarchy = next((each for each in hierarchies() if "memory" in each.controllers), None)
    if hierarchy is None:
        pytest.skip("no control group hierarchy with the memory controller is mounted")
    group = Cgroup(f"/unionfs-test-{uuid.uuid4().hex[:12]}/server")
    group.create(NONE)
    yield group, hierarchy.mount_point + group.path
    group.kill()
    group.remove()


def allow_little_more(directory: str) -> None:
    """A limit just above what is in use, and no swap."""
    if os.path.exists(f"{directory}/memory.max"):
        used, limit, swap = "memory.current", "memory.max", ("memory.swap.max", "0")
    else:
        used, limit, swap = "memory.usage_in_bytes", "memory.limit_in_bytes", ("memory.swappiness", "0")
    with contextlib.suppress(FileNotFoundError):
        Path(directory, swap[0]).write_text(swap[1])
    for _ in range(100):
        try:
            Path(directory, limit).write_text(str(int(Path(directory, used).read_text()) + (128 << 10)))
            return
        except OSError as error:
            assert error.errno == errno.EBUSY  # v1: it uses more already


@pytest.mark.needs("cgroups")
def test_the_server_runs_out_of_memory(
    tmp_path: Path, disk: Path, transport: str, cgroup: tuple[Cgroup, str]
) -> None:
    group, directory = cgroup
    names = [f"{number:05}" + "n" * 200 for number in range(12_000)]
    build(str(disk / "low"), {"d": {}, "copied": "lower", "gone": "lower"})
    for name in names:
        os.mknod(disk / "low/d" / name)
    (disk / "up").mkdir()
    union = Union(str(tmp_path), [str(disk / "low"), str(disk / "up")], transport=transport)

    def mount() -> None:
        Path(directory, "cgroup.procs").write_text("0")
        union.mount()

    assert in_child(mount).wait() == 0  # its server is born where it is limited
    try:
        made = Path(union.path, "made")
        made.write_text("made")
        Path(union.path, "copied").write_text("upper")
        os.unlink(f"{union.path}/gone")
        before = {name: found for name, found in read(str(disk / "up")).items() if not name.startswith(".wh..wh.orph")}
        server = server_of(union.path)
        with contextlib.closing(server), open(made, "rb"):
            assert str(server.pid) in Path(directory, "cgroup.procs").read_text().split()
            allow_little_more(directory)
            with pytest.raises(OSError) as cut_off:
                for name in names:
                    os.stat(f"{union.path}/d/{name}")
            assert cut_off.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            assert select.select([server.pidfd], [], [], 30)[0], "its server lives"
            assert group.oom_kills() >= 1
            with pytest.raises(OSError, match="not connected"):
                os.listdir(union.path)
        unionfs("umount", union.path)
        union.mount()
        assert Path(union.path, "made").read_text() == "made"
        assert Path(union.path, "copied").read_text() == "upper"
        assert sorted(os.listdir(union.path)) == ["copied", "d", "made"]
        assert set(os.listdir(f"{union.path}/d")) == set(names)
        union.unmount()
        assert_same(before, read(str(disk / "up")), "in the upper branch")
    finally:
        if union.mounted:
            unionfs("umount", union.path)
