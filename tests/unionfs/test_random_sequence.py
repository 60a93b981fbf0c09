"""A random sequence of operations does to the mount what it does to a plain directory, remounts in between or not.

Every operation is a value, applied to both; results and errnos must agree at once, whole trees at each remount, and a
remount itself must change nothing, inode numbers included. FUSE_AUFS_SEEDS=5,6,7 runs other sequences.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Union
from tests.trees import assert_same, build, read
from tests.unionfs.operations import RACES, SEEDS, Choice, Side, add_hard_links, apply, check_remount

pytestmark = [pytest.mark.needs("fuse", "user-xattr", "trusted-xattr")]

STEPS, REMOUNT_EVERY, LOOK_EVERY = 2000, 400, 4


def build_branches(home: Path, choice: Choice) -> None:
    branches = [str(home / name) for name in ("low0", "low1", "up")]
    for branch in branches:
        build(branch, choice.tree(whiteouts=branch != branches[0]))
    for number, branch in enumerate(branches):
        add_hard_links(branch, choice, branches[number + 1 :])


@pytest.mark.parametrize("seed", SEEDS)
def test_same_as_a_plain_directory(
    mount_union: Callable[..., Union], transport: str, tmp_path: Path, seed: int
) -> None:
    choice = Choice(seed, str(tmp_path / "plain"), sets_id=transport == "pyfuse3")
    build_branches(tmp_path, choice)
    lower = [read(str(tmp_path / branch)) for branch in ("low0", "low1")]
    # Without it who has a lower file open for reading goes on with that after a copy-up; test_hammer.py is without.
    union = mount_union("low0", "low1", "up", options=("posix",))
    mount, plain = Side(union.path), Side(str(tmp_path / "plain"))
    subprocess.run(["cp", "-a", union.path, plain.root], check=True)
    assert_same(read(plain.root), read(mount.root), "after the copy")
    log: list[str] = []
    try:
        for number in range(STEPS):
            if number % LOOK_EVERY == 0:
                choice.look()
            operation = choice.operation()
            wanted, found = apply(plain, operation), apply(mount, operation)
            log.append(f"{number:5} {operation} -> {wanted!r}"[:200])
            assert found == wanted, f"{operation}: {str(found)[:200]} on the mount, {str(wanted)[:200]} expected"
            if number % REMOUNT_EVERY == REMOUNT_EVERY - 1:
                mount.close()
                plain.close()
                assert_same(read(plain.root, times=False), read(mount.root, times=False), f"after step {number}")
                check_remount(union)
    except AssertionError as error:
        tail = "\n".join(log[-40:])
        raise AssertionError(f"seed {seed}, step {len(log) - 1}:\n{error}\n\nthe last operations:\n{tail}") from None
    finally:
        mount.close()
        plain.close()
    assert [read(str(tmp_path / branch)) for branch in ("low0", "low1")] == lower, "a lower branch changed"


def test_six_threads_at_once(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Threads that work on the same few names meet only the errors of racing; then a remount changes nothing."""
    seed, threads, operations = 7, 6, 250
    choice = Choice(seed, str(tmp_path / "mnt"))
    build_branches(tmp_path, choice)
    union = mount_union("low0", "low1", "up")
    problems: list[str] = []

    def work(number: int) -> None:
        mine, side = Choice(seed * 100 + number, union.path), Side(union.path)
        try:
            for step in range(operations):
                if step % 8 == 0:
                    mine.look()
                operation = mine.operation()
                result = apply(side, operation)
                if isinstance(result, str) and result.startswith("E") and result not in RACES:
                    problems.append(f"thread {number}, step {step}: {operation} -> {result}")
        except BaseException as error:
            problems.append(f"thread {number}: {error!r}")
        finally:
            side.close()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems, "\n".join(problems)
    check_remount(union)
