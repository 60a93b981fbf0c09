"""Kill -9, a full disk and a failing one, before every system call that an operation makes.

The server is killed before call 1, 2, 3 … of an operation; after a remount the union is what it was before the
operation or what it is after it, and the work area is clean. Then each call fails with an errno instead: the caller
gets that errno and nothing changed, or the operation found another way and is done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import Point, Server, Trace
from tests.mounting import TRANSPORTS
from tests.trees import OVERLAY_WHITEOUT, Dir, File, Found, HardLink, Symlink, Tree, build, diff, read, whiteout_of
from unionfs.linux import consts, files

pytestmark = [pytest.mark.needs("fuse", "ptrace", "trusted-xattr")]

# Of 255 bytes: their whiteouts have other names, and a device beside them.
LONG, LONG_DIRECTORY = "n" * 255, 127 * "ä" + "d"
HIDDEN: Tree = {name: entry for long in (LONG, LONG_DIRECTORY) for name, entry in
                ((long, OVERLAY_WHITEOUT), (whiteout_of(long), File("", mode=0o444)))}
ATTRIBUTES = {"user.a": b"1", "trusted.b": b"2"}
LOWER: Tree = {
    "f": File("low" * 3000, mode=0o640, uid=7, gid=8, mtime_ns=10**18 + 1, xattrs=ATTRIBUTES),
    "g": "low g",
    "d": Dir({"x": "low", "sub": Dir({"z": "low"}, mode=0o711)}, mode=0o750, uid=3),
    "e": {},
    "h1": "linked", "h2": HardLink("h1"),
    "l": Symlink("f"),
    LONG: "low long", LONG_DIRECTORY: {"x": "low", LONG: "long"},
}


class Scenario(NamedTuple):
    upper: Tree
    run: Callable[[str], object]


def rename2(old: str, new: str, flags: int) -> None:
    files.renameat2(consts.AT_FDCWD, os.fsencode(old), consts.AT_FDCWD, os.fsencode(new), flags)


def open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def create(path: str, mode: int = 0o640) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def for_another(path: str, make: Callable[[int], object]) -> None:
    """`make` in the directory `path`, whose owner is another user, as that user."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.setegid(5)
    os.seteuid(os.fstat(fd).st_uid)
    try:
        make(fd)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.close(fd)


SCENARIOS = {
    "copy-up": Scenario({}, lambda m: open_to_write(f"{m}/f")),
    "copy-up with its directories": Scenario({}, lambda m: open_to_write(f"{m}/d/sub/z")),
    "copy-up of a hard link": Scenario({}, lambda m: open_to_write(f"{m}/h2")),
    "chmod": Scenario({}, lambda m: os.chmod(f"{m}/f", 0o600)),
    "chmod of a directory": Scenario({}, lambda m: os.chmod(f"{m}/d/sub", 0o700)),
    "chown of a symlink": Scenario({}, lambda m: os.lchown(f"{m}/l", 5, 6)),
    "setxattr": Scenario({}, lambda m: os.setxattr(f"{m}/d", "user.a", b"1")),
    "truncate": Scenario({}, lambda m: os.truncate(f"{m}/f", 0)),
    "create": Scenario({}, lambda m: create(f"{m}/d/n")),
    "create for another": Scenario({}, lambda m: for_another(
        f"{m}/d", lambda fd: os.close(os.open("n", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=fd)))),
    "create with a set-ID bit": Scenario({}, lambda m: create(f"{m}/n", 0o4750)),
    "create over a whiteout": Scenario({".wh.g": ""}, lambda m: create(f"{m}/g")),
    "mkdir": Scenario({}, lambda m: os.mkdir(f"{m}/n")),
    "mkdir for another": Scenario({}, lambda m: for_another(f"{m}/d", lambda fd: os.mkdir("n", dir_fd=fd))),
    "mkdir over a whiteout": Scenario({".wh.d": ""}, lambda m: os.mkdir(f"{m}/d", 0o700)),
    "symlink for another": Scenario({}, lambda m: for_another(f"{m}/d", lambda fd: os.symlink("t", "n", dir_fd=fd))),
    "mknod over a whiteout": Scenario({".wh.d": ""}, lambda m: os.mkfifo(f"{m}/d")),
    "symlink over a whiteout": Scenario({".wh.d": ""}, lambda m: os.symlink("t", f"{m}/d")),
    "link a lower file": Scenario({}, lambda m: os.link(f"{m}/g", f"{m}/d/n")),
    "link a lower hard link": Scenario({}, lambda m: os.link(f"{m}/h1", f"{m}/n")),
    "link over a whiteout": Scenario({".wh.g": "", "n": "up"}, lambda m: os.link(f"{m}/n", f"{m}/g")),
    "unlink a lower file": Scenario({}, lambda m: os.unlink(f"{m}/d/x")),
    "unlink a copied-up file": Scenario({"g": "up"}, lambda m: os.unlink(f"{m}/g")),
    "unlink a lower hard link": Scenario({}, lambda m: os.unlink(f"{m}/h1")),
    "rmdir of a new directory": Scenario({"n": {}}, lambda m: os.rmdir(f"{m}/n")),
    "rmdir of a lower directory": Scenario({}, lambda m: os.rmdir(f"{m}/e")),
    "rmdir of a merged directory": Scenario({"d": {".wh.x": "", ".wh.sub": ""}}, lambda m: os.rmdir(f"{m}/d")),
    "rename a lower file": Scenario({}, lambda m: os.rename(f"{m}/f", f"{m}/e/n")),
    "rename leaving a whiteout": Scenario({"n": "up"},
                                          lambda m: rename2(f"{m}/n", f"{m}/o", consts.RENAME_WHITEOUT)),
    "rename over a lower file": Scenario({"n": "up"}, lambda m: os.rename(f"{m}/n", f"{m}/g")),
    "rename a lower file over a copied-up one": Scenario({"g": "up"}, lambda m: os.rename(f"{m}/f", f"{m}/g")),
    "rename a file over a whiteout": Scenario({".wh.d": ""}, lambda m: os.rename(f"{m}/g", f"{m}/d")),
    "rename a hard link": Scenario({}, lambda m: os.rename(f"{m}/h2", f"{m}/n")),
    "rename a lower directory": Scenario({}, lambda m: os.rename(f"{m}/d", f"{m}/n")),
    "rename a merged directory over an empty one": Scenario({"d": {"y": "up", ".wh.x": ""}},
                                                            lambda m: os.rename(f"{m}/d", f"{m}/e")),
    "rename a directory over whiteouts": Scenario({".wh.d": "", "n": {"q": "up"}},
                                                  lambda m: os.rename(f"{m}/n", f"{m}/d")),
    "rename over an emptied directory": Scenario({"d": {".wh.x": "", ".wh.sub": ""}, "n": {"q": "up"}},
                                                 lambda m: os.rename(f"{m}/n", f"{m}/d")),
    "unlink a long name": Scenario({}, lambda m: os.unlink(f"{m}/{LONG}")),
    "unlink a long name of a copied-up file": Scenario({LONG: "up"}, lambda m: os.unlink(f"{m}/{LONG}")),
    "create over a long whiteout": Scenario(HIDDEN, lambda m: create(f"{m}/{LONG}")),
    "mkdir over a long whiteout": Scenario(HIDDEN, lambda m: os.mkdir(f"{m}/{LONG_DIRECTORY}")),
    "rmdir of a merged directory with a long name": Scenario(
        {LONG_DIRECTORY: {".wh.x": "", LONG: OVERLAY_WHITEOUT, whiteout_of(LONG): ""}},
        lambda m: os.rmdir(f"{m}/{LONG_DIRECTORY}")),
    "rename a long name": Scenario({}, lambda m: os.rename(f"{m}/{LONG}", f"{m}/n")),
    "rename a directory of a long name": Scenario({}, lambda m: os.rename(f"{m}/{LONG_DIRECTORY}", f"{m}/e")),
    "rename over a long whiteout": Scenario(HIDDEN, lambda m: os.rename(f"{m}/d", f"{m}/{LONG_DIRECTORY}")),
    "rename a long name over a long one": Scenario(
        {LONG_DIRECTORY: {".wh.x": ""}},
        lambda m: os.rename(f"{m}/{LONG}", f"{m}/{LONG_DIRECTORY}/{LONG}")),
    "exchange long names": Scenario(
        {}, lambda m: rename2(f"{m}/{LONG}", f"{m}/{LONG_DIRECTORY}", consts.RENAME_EXCHANGE)),
    "exchange files": Scenario({"g": "up"}, lambda m: rename2(f"{m}/f", f"{m}/g", consts.RENAME_EXCHANGE)),
    "exchange a file and a directory": Scenario({"n": {"q": "up"}},
                                                lambda m: rename2(f"{m}/g", f"{m}/n", consts.RENAME_EXCHANGE)),
}


# The calls are the union's; what a transport adds is who makes them, and what is under way beside. So all scenarios on
# the one with more threads, and one of each kind on the other.
GROUNDS = [("direct", name) for name in SCENARIOS] + [
    ("pyfuse3", name)
    for name in ("copy-up with its directories", "setxattr", "create over a whiteout", "mkdir over a whiteout",
                 "link a lower hard link", "unlink a lower file", "rmdir of a merged directory",
                 "rename a lower file", "rename a merged directory over an empty one", "exchange files",
                 "unlink a long name", "create over a long whiteout")
]  # fmt: skip


class State(NamedTuple):
    tree: dict[str, Found]
    numbers: dict[str, int]


class Ground:
    """The branches of a scenario, made anew for each run, and servers over them."""

    def __init__(self, home: str, scenario: Scenario, transport: str) -> None:
        self.home = home
        self.scenario = scenario
        self.transport = transport
        self.path = os.path.join(home, "mnt")
        self.trace = os.path.join(home, "trace")
        self.server: Server | None = None
        os.mkdir(self.path)

    def close(self) -> None:
        if self.server is not None:
            self.server.dispose()

    def prepare(self) -> Server:
        for branch, tree in (("low", LOWER), ("up", self.scenario.upper)):
            shutil.rmtree(f"{self.home}/{branch}", ignore_errors=True)
            build(f"{self.home}/{branch}", tree)
        return self.serve()

    def serve(self) -> Server:
        home = self.home
        self.server = Server(f"{home}/low", f"{home}/up", self.path, f"{home}/log", transport=self.transport)
        return self.server

    def state(self) -> State:
        tree = read(self.path)
        return State(tree, {path: os.lstat(os.path.join(self.path, path)).st_ino for path in tree})

    def work_area(self) -> list[str]:
        area = f"{self.home}/up/.wh..wh.orph"
        return os.listdir(area) if os.path.isdir(area) else []


def same(one: State, other: State) -> bool:
    """The same in everything, times of files and inode numbers included."""
    return not diff(one.tree, other.tree) and one.numbers == other.numbers


def done(state: State, after: State) -> bool:
    """As after the operation, but for times: each run makes its entries at its own."""
    return not diff({path: replace(found, mtime_ns=None) for path, found in after.tree.items()}, state.tree)


def rehearse(ground: Ground) -> tuple[list[Point], State]:
    """The operation without faults: its changing calls, and the union afterwards."""
    server = ground.prepare()
    ground.state()
    trace = Trace(server, ground.trace)
    ground.scenario.run(ground.path)
    trace.detach()
    after = ground.state()
    server.stop()
    points = trace.points()
    assert points
    return points, after


def explain(what: str, point: Point, before: State, after: State, found: State) -> str:
    lines = [f"{what} before {point}: neither before nor after; from before it differs in"]
    lines += [f"    {line}" for line in diff(before.tree, found.tree)]
    lines += [f"    {path}: inode {before.numbers[path]} is now {number}"
              for path, number in found.numbers.items() if before.numbers.get(path, number) != number]
    lines += ["and from after in", *[f"    {line}" for line in diff(after.tree, found.tree)]]
    return "\n".join(lines)


@pytest.fixture(params=GROUNDS, ids="-".join)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    transport, name = request.param
    ground = Ground(str(tmp_path), SCENARIOS[name], transport)
    yield ground
    ground.close()


def test_killed_before_each_call(ground: Ground) -> None:
    points, after = rehearse(ground)
    problems = []
    for point in points:
        server = ground.prepare()
        before = ground.state()
        trace = Trace(server, ground.trace, f"{point.call}:signal=SIGKILL:when={point.number}")
        try:
            ground.scenario.run(ground.path)
            os.statvfs(ground.path)  # answered after all that the operation left to do
        except OSError:
            pass  # the server is gone: ECONNABORTED or ENOTCONN
        else:
            trace.detach()
            server.stop()
            raise AssertionError(f"{point} was not reached")
        trace.ended()
        server.bury()
        server = ground.serve()
        found = ground.state()
        if not same(found, before) and not done(found, after):
            problems.append(explain("killed", point, before, after, found))
        if left := ground.work_area():
            problems.append(f"killed before {point}: after the next mount the work area still holds {left}")
        server.stop()
    assert not problems, "\n".join(problems)


def test_each_call_fails(ground: Ground) -> None:
    points, after = rehearse(ground)
    problems = []
    for number, point in enumerate(points):
        error = ("ENOSPC", "EIO")[number % 2]
        server = ground.prepare()
        before = ground.state()
        trace = Trace(server, ground.trace, f"{point.call}:error={error}:when={point.number}")
        failure = None
        try:
            ground.scenario.run(ground.path)
        except OSError as raised:
            failure = raised
        trace.detach()
        assert trace.injected, f"{point} was not reached"
        found = ground.state()
        if failure is None and not done(found, after):
            problems.append(explain(f"{error} and success", point, before, after, found))
        if failure is not None and errno.errorcode[failure.errno or 0] != error:
            problems.append(f"{error} before {point}: the caller got {failure}")
        if failure is not None and not same(found, before):
            problems.append(explain(f"{error} and failure", point, before, after, found))
        if (left := ground.work_area()) and not point.call.startswith("unlink"):  # then tidying up is what failed
            problems.append(f"{error} before {point}: the work area holds {left}")
        server.stop()
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "ground", [(transport, "rename over a lower file") for transport in TRANSPORTS], indirect=True, ids="-".join
)
def test_killed_while_unlinked_files_are_open(ground: Ground) -> None:
    """What lived on only because it was open is gone with the server, and leaves nothing behind."""
    server = ground.prepare()
    names = [f"{ground.path}/{name}" for name in ("f", "g", "n", "h1")]
    held = [os.open(name, os.O_RDWR) for name in names]
    for name in names:
        os.unlink(name)
    for fd in held:
        os.pwrite(fd, b"still whole", 0)
        assert os.pread(fd, 11, 0) == b"still whole"
    before = ground.state()
    os.kill(server.pid, signal.SIGKILL)
    server.bury()
    for fd in held:
        with contextlib.suppress(OSError):  # there is nobody to tell
            os.close(fd)
    server = ground.serve()
    assert same(ground.state(), before)
    server.stop()
    assert ground.work_area() == []
