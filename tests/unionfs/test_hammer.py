"""Eight processes work on one union at once: what each does alone is as on a plain directory, what all do together
breaks nothing, nothing is left in the server's hands afterwards, and what was synced outlives the server.

HAMMER_SECONDS=60 makes it last, HAMMER_SEED=N makes other choices (scripts/nightly).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.children import Child, in_child
from tests.mounting import Union, server_of, unionfs
from tests.trees import File, HardLink, assert_same, build, read
from tests.unionfs.hammering import RECORD, CutOff, Hammer
from tests.unionfs.operations import SHORT, Choice, Operation, check_remount
from tests.unionfs.waiting import ended, wait_until
from unionfs.linux import consts, mounts
from unionfs.transport import info

pytestmark = pytest.mark.needs("fuse", "tmpfs-xattr", "trusted-xattr")

SECONDS = float(os.environ.get("HAMMER_SECONDS", "8"))
PROCESSES = 8


class Process:
    """A Hammer in a process of its own."""

    def __init__(self, home: Path, number: int, seconds: float, *, mapped: bool) -> None:
        self.number = number
        ours, theirs = socket.socketpair()
        with theirs:
            self.child: Child = in_child(lambda: _hammer(theirs, ours, str(home), number, seconds, mapped))
        ours.settimeout(seconds + 60)
        self._socket = ours
        self._stream = ours.makefile("rw", encoding="utf-8")

    def hear(self) -> list[str]:
        said: list[str] = json.loads(self._stream.readline() or "[]")
        return said

    def compare(self) -> list[str]:
        """The differences between its two trees."""
        self._say("compare")
        return self.hear()

    def _say(self, word: str) -> None:
        self._stream.write(f"{word}\n")
        self._stream.flush()

    def end(self, *, kill: bool) -> None:
        if kill:
            os.kill(self.child.pid, signal.SIGKILL)
        else:
            self._say("end")
        self._stream.close()
        self._socket.close()
        assert self.child.wait() == 0 or kill


def _hammer(theirs: socket.socket, ours: socket.socket, home: str, number: int, seconds: float, mapped: bool) -> None:
    ours.close()
    with theirs, theirs.makefile("rw", encoding="utf-8") as stream:
        hammer = Hammer(home, number, mapped=mapped)
        cut = None
        try:
            hammer.work(seconds)
            said = ["stopped", str(hammer.operations), str(hammer.recorded)]
        except CutOff as error:
            cut = error.operation
            said = ["cut off", str(hammer.operations), str(hammer.recorded)]
        except BaseException:
            said = ["failed", traceback.format_exc()]
        hammer.let_go()
        while True:
            stream.write(json.dumps(said) + "\n")
            stream.flush()
            if stream.readline() != "compare\n":
                return
            said = hammer.differences(cut)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of the branches alone, where what is held and has no name can be counted."""
    path = tmp_path / "disk"
    path.mkdir()
    mounts.mount("hammer", str(path), "tmpfs")
    yield path
    mounts.umount2(str(path))


def prepared(home: Path, branches: Path, mount_union: Callable[..., Union]) -> Union:
    """A union with the processes' trees, part of them in each branch, and the plain directory like it."""
    for branch in ("low", "up"):
        for number, name in enumerate([f"own{number}" for number in range(PROCESSES)] + ["shared"]):
            path = str(branches / branch / name)
            build(path, Choice(number * 2 + (branch == "up"), path, names=SHORT).tree(whiteouts=branch == "up"))
            if branch == "low":
                build(path, {"twin": File(b"twin", mode=0o600), "sister": HardLink("twin")})
    for number in range(PROCESSES):
        (branches / "low" / f"durable{number}").mkdir()
    (branches / "low" / "records").touch()
    union = mount_union(*(os.path.relpath(branches / name, home) for name in ("low", "up")))
    (home / "plain").mkdir()
    for number in range(PROCESSES):
        own = f"own{number}"
        os.makedirs(home / "plain" / own)
        subprocess.run(["cp", "-aT", f"{union.path}/{own}", f"{home}/plain/{own}"], check=True)
    return union


@contextlib.contextmanager
def hammering(home: Path, seconds: float, *, mapped: bool = True) -> Iterator[list[Process]]:
    processes: list[Process] = []
    kill = True
    try:
        for number in range(PROCESSES):
            processes.append(Process(home, number, seconds, mapped=mapped))
        yield processes
        kill = False
    finally:
        for process in processes:
            process.end(kill=kill)


def settle(union: Union) -> None:
    """Have the kernel forget all it can of this mount. A remount does that (reconfigure_super(), fs/super.c); the
    server then has nothing open, and knows nothing but the root."""
    mounts.mount("none", union.path, None, consts.MS_REMOUNT)
    facts = info.ask(union.path)

    def settled() -> bool:
        nonlocal facts
        facts = info.ask(union.path)
        return (facts["nodes"], facts["open_files"]) == (1, 0)

    try:
        wait_until(settled)
    except AssertionError:
        raise AssertionError(f"left: {facts['nodes']} nodes, {facts['open_files']} open files") from None


def held_in(path: Path, pid: int) -> Counter[str]:
    """What a process has open there, but for the union's own directories, which it opens when it needs them."""
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith(str(path)) and not os.path.basename(target).startswith(".wh."):
                found[target] += 1
    return found


def usage(path: Path) -> tuple[int, int]:
    """Bytes of a tmpfs: those in use, and those of files that have a name."""
    status = os.statvfs(path)
    named: dict[int, int] = {}
    for directory, _, names in os.walk(path):
        for name in names:
            entry = os.lstat(os.path.join(directory, name))
            named[entry.st_ino] = entry.st_blocks * 512
    return (status.f_blocks - status.f_bfree) * status.f_frsize, sum(named.values())


def test_eight_processes(tmp_path: Path, disk: Path, mount_union: Callable[..., Union]) -> None:
    union = prepared(tmp_path, disk, mount_union)
    server = info.ask(union.path)["pid"]
    settle(union)
    lower, held = read(str(disk / "low")), held_in(disk, server)
    with hammering(tmp_path, SECONDS) as processes:
        said = [process.hear() for process in processes]
        assert [words[0] for words in said] == ["stopped"] * PROCESSES, "\n".join(words[-1] for words in said)
        assert min(int(words[1]) for words in said) > SECONDS, "so few operations tell nothing"
        for process in processes:
            assert process.compare() == []
    check_records(union, [int(words[2]) for words in said])
    settle(union)
    assert held_in(disk, server) == held
    used, named = usage(disk)
    assert used == named, "files without a name are held: backing files that were not taken back"
    check_remount(union)
    for number in range(PROCESSES):
        own = f"own{number}"
        assert_same(read(f"{tmp_path}/plain/{own}", times=False), read(f"{union.path}/{own}", times=False), own)
    assert read(str(disk / "low")) == lower, "a lower branch changed"


def check_records(union: Union, counts: list[int]) -> None:
    """None is lost, torn, or out of its process's order."""
    content = Path(union.path, "records").read_bytes()
    records = [content[at : at + RECORD] for at in range(0, len(content), RECORD)]
    of: dict[int, list[int]] = {number: [] for number in range(PROCESSES)}
    for record in records:
        number, count = record.split()
        of[int(number)].append(int(count))
    assert of == {number: list(range(count)) for number, count in enumerate(counts)}


@pytest.mark.parametrize("name", ["directory/file", "link/file", "file_link", "link/to_file"])
def test_a_write_cut_in_the_middle(tmp_path: Path, name: str) -> None:
    """Is that of the operation, by whatever name it came to the file; another file's is a difference."""
    for side in ("mnt", "plain"):
        directory = tmp_path / side / "own0" / "directory"
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(b"old")
        (directory / "other").write_bytes(b"old")
        (directory / "to_file").symlink_to("file")
        (directory.parent / "link").symlink_to("directory")
        (directory.parent / "file_link").symlink_to("directory/file")
    (tmp_path / "mnt" / "records").touch()
    hammer = Hammer(str(tmp_path), 0, mapped=False)
    cut = Operation("truncate", (name, 5000))
    (tmp_path / "mnt/own0/directory/file").write_bytes(b"old" + bytes(4093))
    assert hammer.differences(cut) == []
    (tmp_path / "mnt/own0/directory/other").write_bytes(b"another")
    assert any("directory/other" in line for line in hammer.differences(cut))
    hammer.let_go()
    os.close(hammer.said)


def test_killed_under_load(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    union = prepared(tmp_path, tmp_path, mount_union)
    durable = [tmp_path / f"durable{number}" for number in range(PROCESSES)]
    server = server_of(union.path)
    with contextlib.closing(server), hammering(tmp_path, 600, mapped=False) as processes:
        wait_until(lambda: all(path.exists() and path.read_text().count("\n") >= 3 for path in durable))
        os.kill(server.pid, signal.SIGKILL)
        assert ended(server)
        said = [process.hear() for process in processes]
        assert [words[0] for words in said] == ["cut off"] * PROCESSES, "\n".join(words[-1] for words in said)
        with pytest.raises(OSError, match="not connected"):
            os.listdir(union.path)
        unionfs("umount", union.path)
        assert not union.mounted
        union.mount()
        for process in processes:
            assert process.compare() == []
    for number, path in enumerate(durable):
        for line in path.read_text().splitlines():
            name, checksum = line.split()
            content = Path(union.path, f"durable{number}", name).read_bytes()
            assert zlib.crc32(content) == int(checksum), f"durable{number}/{name} is not what was synced"
    check_remount(union)
