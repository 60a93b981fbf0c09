"""The same operations on our union and on the overlayfs of the same layers: the same results, errnos and trees.

What a plain directory does is compared in test_random_sequence.py; here it is what only layers have: a merged directory
is renamed, a deleted one made anew, a lower file linked. FUSE_AUFS_SEEDS=5,6,7 runs other sequences (scripts/nightly).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from tests.mounting import Union, mounted
from tests.trees import ACL_XATTRS, assert_same, build, read
from tests.unionfs.operations import SEEDS, SHORT, Choice, Side, apply

pytestmark = pytest.mark.needs("fuse", "overlay", "user-xattr", "trusted-xattr")

STEPS, LOOK_EVERY, COMPARE_EVERY = 1000, 4, 250


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Callable[[int], tuple[Choice, Side]]]:
    """Makes three layers by a seed, and mounts an overlay of copies; with what chooses by what is in it."""
    with mounted([Mount("tmpfs", "tmpfs")]) as home:
        held = []

        def make(seed: int) -> tuple[Choice, Side]:
            choice = Choice(seed, "", sets_id=False, names=SHORT)  # longer: redirect_max
            for name in ("low0", "low1", "up"):
                tree = choice.tree()
                build(str(tmp_path / name), tree)
                build(f"{home}/{name}", tree)
            os.mkdir(f"{home}/work")
            layers = (f"lowerdir+={home}/low1", f"lowerdir+={home}/low0", f"upperdir={home}/up", f"workdir={home}/work")
            held.append(mounted([Mount("overlay", "overlay", (*layers, "redirect_dir=on", "index=on"))]))
            choice.plain = held[0].__enter__()
            return choice, Side(choice.plain)

        yield make
        for mount in held:
            mount.__exit__(None, None, None)


@pytest.mark.parametrize("transport", ["auto"])
@pytest.mark.parametrize("seed", SEEDS)
def test_in_step(
    mount_union: Callable[..., Union], overlay: Callable[[int], tuple[Choice, Side]], tmp_path: Path, seed: int
) -> None:
    choice, theirs = overlay(seed)
    union = mount_union("low0", "low1", "up", options=("posix",))
    ours = Side(union.path)
    assert_same(read(theirs.root, times=False), read(ours.root, times=False), "before")
    log: list[str] = []
    try:
        for number in range(STEPS):
            if number % LOOK_EVERY == 0:
                choice.look()
            operation = choice.operation()
            if operation.name == "removexattr" and operation.arguments[1] in ACL_XATTRS:
                continue  # of an ACL that is not set it sometimes says ENODATA, as no other file system does
            wanted, found = apply(theirs, operation), apply(ours, operation)
            log.append(f"{number:5} {operation} -> {wanted!r}"[:200])
            assert found == wanted, f"{operation}: {str(found)[:200]} on the union, {str(wanted)[:200]} on overlayfs"
            if number % COMPARE_EVERY == COMPARE_EVERY - 1:
                assert_same(read(theirs.root, times=False), read(ours.root, times=False), f"after step {number}")
    except AssertionError as error:
        raise AssertionError(f"seed {seed}:\n{error}\n\nthe last operations:\n" + "\n".join(log[-30:])) from None
    finally:
        theirs.close()
        ours.close()
    union.remount()
    assert_same(read(theirs.root, times=False), read(union.path, times=False), "after a remount")
