"""Random and mutated requests against the in-memory transport: each has the one answer that it must have, nothing
unforeseen happens, what the union and the keeper of backing files know stays consistent, and lower branches are not
written to.

10,000 requests here, as many as FUZZ_REQUESTS says elsewhere (scripts/nightly: 1,000,000). They come in rounds, each on
branches of its own; FUZZ_SEED=N starts with the round that a failure names, which is the same one again only under the
same PYTHONHASHSEED, as listings are in the order of hashes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trees import Dir, File, HardLink, Special, Symlink, Tree, build, diff, read
from tests.unionfs.fuzzing import Kernel, mutated, sane
from tests.unionfs.inprocess import Seen, differences, known, snapshot, union
from unionfs.fuse import abi
from unionfs.fuse.request import Malformed, Request, Unintelligible, parse
from unionfs.linux import consts, mounts
from unionfs.options import PASSTHROUGH
from unionfs.transport.memory import EVERYTHING, MemoryTransport
from unionfs.union.fs import UnionFs

pytestmark = pytest.mark.needs("tmpfs-xattr", "trusted-xattr")

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "10000"))
FIRST = int(os.environ.get("FUZZ_SEED", "0"))
A_ROUND, LOOK_EVERY = 2000, 250

LOWER: Tree = {
    "lower": File(b"lower" * 2000, mode=0o644),
    "both": b"below",
    "link": Symlink("lower"),
    "hard": HardLink("lower"),
    "set": File(b"program", mode=0o6755),
    "dir": {"a": b"a", "b": {"deep": {"c": b"c"}}, "fifo": Special(mode=0o644), "hard": HardLink("../lower")},
    "gone": {"a": b""},
}
MIDDLE: Tree = {"both": b"between", "dir": {"b": {"deep": {".wh.c": b""}}, "e": b"e"}, "gone": b"", ".wh.set": b""}
UPPER: Tree = {"both": b"above", "dir": {".wh.a": b"", "d": b"d"}, ".wh.gone": b"", "e": Dir({}, mode=0o2775)}


class Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    logger = logging.getLogger("unionfs")
    handler = Complaints()
    level = logger.level
    logger.setLevel(logging.ERROR)  # warnings of malformed requests come by the hundred thousand
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def branches(base: Path) -> Iterator[Path]:
    """A small tmpfs, which takes with it whatever flags its files got; and a disk that is soon full."""
    mounts.mount("fuzz", str(base), "tmpfs", 0, "size=8m,nr_inodes=3000")
    try:
        build(str(base / "low" / "0"), LOWER)
        build(str(base / "low" / "1"), MIDDLE)
        build(str(base / "up"), UPPER)
        yield base
    finally:
        mounts.umount2(str(base), consts.MNT_DETACH)


def send(transport: MemoryTransport, kernel: Kernel, message: bytes) -> None:
    try:
        request: Request | None = parse(memoryview(message))
    except (Malformed, Unintelligible):
        request = None
    if request is not None and request.opcode == abi.FUSE_FORGET:
        kernel.forgets([(request.nodeid, request.fields[0])])
    elif request is not None and request.opcode == abi.FUSE_BATCH_FORGET:
        kernel.forgets(list(abi.FORGET_ONE.iter_unpack(request.data)))
    try:
        said = transport.send(message)
    except Unintelligible:
        # The session would end. Only what nobody can answer may do that.
        assert len(message) < abi.IN_HEADER.size or message[8:16] == bytes(8)
        return
    sane(message, said)
    if request is not None and said is not None:
        kernel.learn(request, said, transport)


def one_round(base: Path, seed: int, count: int, complaints: list[str]) -> None:
    merged = ("low/1", "low/0") if seed % 2 else ("low/0",)
    upper = None if seed % 8 == 7 else "up"
    with branches(base):
        before = read(str(base / "low"))
        with union(base, *merged, upper=upper) as fs:
            offers = EVERYTHING if seed % 4 else EVERYTHING & ~abi.FUSE_PASSTHROUGH
            transport = MemoryTransport(fs, passthrough=PASSTHROUGH[seed % 3], offers=offers)
            transport.lent.refuses = errno.EPERM if seed % 16 == 5 else 0
            requests(transport, seed, count, complaints)
            assert known(fs) == 1, "a node that nobody knows is left in the table"
            assert not transport.lent.files, "backing files are left"
            assert fs.counts()[1] == 0
            shown = tree(fs)
        assert not diff(before, read(str(base / "low"))), "a lower branch was written to"
        with union(base, *merged, upper=upper) as again:
            changed = differences(shown, tree(again))
            assert not changed, f"FUZZ_SEED={seed}: a remount changed {changed}"


def tree(fs: UnionFs) -> dict[str, Seen]:
    try:
        return snapshot(fs)
    except OSError as error:
        # security.capability can be set to what cannot be read then (security/commoncap.c).
        assert error.errno == errno.EINVAL
        return {}


def requests(transport: MemoryTransport, seed: int, count: int, complaints: list[str]) -> None:
    pick = random.Random(seed)
    kernel = Kernel(pick)
    message = b""
    try:
        for number in range(count):
            message = kernel.request()
            if pick.random() < 0.4:
                message = mutated(message, pick)
            send(transport, kernel, message)
            assert not complaints, "\n".join(complaints)
            if number % LOOK_EVERY == LOOK_EVERY - 1:
                look(transport)
        message = b""
        let_go(transport, kernel)
        look(transport)
        assert not complaints, "\n".join(complaints)
    except Exception as error:
        hashes = os.environ.get("PYTHONHASHSEED", "random")
        named = f"FUZZ_SEED={seed} PYTHONHASHSEED={hashes}"
        raise AssertionError(f"{named}: {error!r} by {message.hex(' ', 4)}") from error


def round_of_threads(base: Path, seed: int, count: int, complaints: list[str]) -> None:
    """Valid requests of four kernels at once. Each node's lookups are the sum of theirs."""
    problems: list[str] = []
    with branches(base), union(base, "low/1", "low/0") as fs:
        before = read(str(base / "low"))
        transport = MemoryTransport(fs, passthrough=PASSTHROUGH[seed % 3])
        kernels = [Kernel(random.Random(seed * 10 + number)) for number in range(4)]

        def work(kernel: Kernel) -> None:
            message = b""
            try:
                for _ in range(count):
                    message = kernel.request()
                    send(transport, kernel, message)
                message = b""
                let_go(transport, kernel)
            except Exception as error:
                problems.append(f"{error!r} by {message.hex(' ', 4)}")

        threads = [threading.Thread(target=work, args=(kernel,)) for kernel in kernels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems + complaints, "\n".join(problems + complaints)
        look(transport)
        assert known(fs) == 1, "a node that nobody knows is left in the table"
        assert not transport.lent.files, "backing files are left"
        assert not diff(before, read(str(base / "low"))), "a lower branch was written to"


def look(transport: MemoryTransport) -> None:
    transport.fs.check_invariants()
    passthrough = transport.operations.passthrough
    if passthrough is not None:
        passthrough.check_invariants()
        assert passthrough.statistics["lent"] == len(transport.lent.files)


def let_go(transport: MemoryTransport, kernel: Kernel) -> None:
    """What the kernel does when the last user has gone."""
    for fh, (number, _) in list(kernel.files.items()):
        said = transport.ask(abi.FUSE_RELEASE, number, abi.RELEASE_IN.pack(fh, 0, 0, 0))
        assert said == abi.OUT_HEADER.pack(16, 0, abi.OUT_HEADER.unpack(said or b"")[2])
    # Also what it was made to forget while it was open.
    for number in kernel.lookups.keys() | kernel.opened:
        transport.ask(abi.FUSE_FORGET, number, abi.FORGET_IN.pack(kernel.lookups.get(number, 0)))


def test_any_request(tmp_path: Path, complaints: list[str]) -> None:
    for seed in range(FIRST, FIRST + max(1, REQUESTS // A_ROUND)):
        one_round(tmp_path, seed, min(A_ROUND, REQUESTS), complaints)


def test_any_request_beside_others(tmp_path: Path, complaints: list[str]) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for seed in range(FIRST, FIRST + max(4, REQUESTS // 50 // A_ROUND)):
            round_of_threads(tmp_path, seed, A_ROUND // 8, complaints)
    finally:
        sys.setswitchinterval(interval)
