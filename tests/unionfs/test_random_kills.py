"""A random sequence in which the server is killed at arbitrary calls: each call was done, or never began."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import Server, Trace
from tests.trees import build, diff, read
from tests.unionfs.operations import Choice, Operation, Side, add_hard_links, apply

pytestmark = [pytest.mark.needs("fuse", "ptrace", "user-xattr", "trusted-xattr")]

STEPS = 800
CALLS = ("linkat", "renameat", "renameat2", "unlinkat", "mkdirat", "setxattr", "lsetxattr", "fsetxattr", "rmdir",
         "utimensat", "openat", "fchownat", "chmod", "chown", "symlinkat", "mknodat", "copy_file_range", "ftruncate")
CHANGES = ("write", "truncate", "chmod", "chown", "mkdir", "rmdir", "unlink", "link", "rename", "symlink", "mknod",
           "setxattr")


class Victim:
    """A union of two branches, its server, and how often that was killed."""

    def __init__(self, home: str, transport: str) -> None:
        self.home = home
        self.transport = transport
        self.path = f"{home}/mnt"
        self.kills = 0
        os.mkdir(self.path)
        self.server = self._serve()

    def _serve(self) -> Server:
        home = self.home
        return Server(f"{home}/low", f"{home}/up", self.path, f"{home}/log", transport=self.transport)

    def attempt(self, side: Side, operation: Operation, fault: str) -> tuple[object, bool]:
        """(result, killed): the operation under `fault`; after a kill the union is mounted again."""
        trace = Trace(self.server, f"{self.home}/trace", fault)
        result = apply(side, operation)
        try:
            os.statvfs(self.path)  # answered after all that the operation left to do
        except OSError:
            trace.ended()
            self.server.bury()
            self.server = self._serve()
            self.kills += 1
            return result, True
        trace.detach()
        return result, False


@pytest.fixture(params=[1, 2])
def choice(request: pytest.FixtureRequest, tmp_path: Path) -> Choice:
    """Branches made from a seed, and the choices that follow it."""
    choice = Choice(request.param, str(tmp_path / "plain"))
    for branch in ("low", "up"):
        build(str(tmp_path / branch), choice.tree(whiteouts=branch == "up"))
        add_hard_links(str(tmp_path / branch), choice)
    return choice


@pytest.fixture
def victim(choice: Choice, tmp_path: Path, transport: str) -> Iterator[Victim]:
    victim = Victim(str(tmp_path), transport)
    yield victim
    victim.server.dispose()


def test_before_or_after_whenever_it_is_killed(choice: Choice, victim: Victim) -> None:
    subprocess.run(["cp", "-a", victim.path, choice.plain], check=True)
    plain, mount = Side(choice.plain), Side(victim.path)
    log: list[str] = []
    for number in range(STEPS):
        if number % 4 == 0:
            choice.look()
        operation = choice.operation()
        if operation.name not in CHANGES:
            continue
        calls = ",".join(choice.random.sample(CALLS, 5))
        fault = f"{calls}:signal=SIGKILL:when={choice.random.choice((1, 1, 2, 2, 3))}"
        before = read(choice.plain, times=False)
        result, killed = victim.attempt(mount, operation, fault)
        log.append(f"{operation} -> {'killed' if killed else result} {fault}"[:200])
        now = read(victim.path, times=False) if killed else before
        if killed and not diff(before, now):
            continue
        if killed and operation.name == "write":  # two calls: killed between them, the first was done
            path, flags, offset, byte, size = operation.arguments
            apply(plain, operation._replace(arguments=(path, flags, offset, byte, 0)))
            if not diff(read(choice.plain, times=False), now):
                continue
            operation = operation._replace(arguments=(path, flags & os.O_APPEND, offset, byte, size))
        wanted = apply(plain, operation)
        assert killed or result == wanted, f"{result}, expected {wanted}; last:\n" + "\n".join(log[-20:])
        if killed and (differences := diff(read(choice.plain, times=False), now)):
            lines = ["neither before nor after; from before it differs in", *diff(before, now), "and from after in"]
            raise AssertionError("\n".join([*lines, *differences, "the last operations:", *log[-20:]]))
    assert not diff(read(choice.plain, times=False), read(victim.path, times=False))
    assert victim.kills >= 5
    victim.server.stop()
