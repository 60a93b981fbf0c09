"""What does finding a name in a stack of layers cost?

The stack has 1, 8 or 32 layers below the writable one. Directories are in every layer, so each lookup below them is
in a merged directory; the files looked for are in the lowest layer only, the farthest from the top. Measured per name:
  hit           stat(2) of a file that the union has not been asked for since it was mounted
  hit again     stat(2) of the same file once more: what the kernel remembers is not asked for again
  miss          stat(2) of a name that is in no layer, asked for the first time
  cold walk     listing a tree of 20 directories and 400 files with lstat(2) of every entry, per entry

What is cold: for hit and miss, the union (it was just mounted), while the layers' own dentries and inodes are warm
from a round before the first that counts. So the time of these two is the union's price. vfs is a bind mount of one
plain directory: a new mount makes nothing cold, and its time is the floor. For the walk every dentry and inode is cold,
the layers' too (/proc/sys/vm/drop_caches, 2), while the disk's blocks stay in the page cache; it is left out where
drop_caches cannot be written.

Not measured: the disk, directories with very many entries, and several clients at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.subjects import Layer, Subject, Tree
from benchmarks.timing import Sample, per_operation, rotated

DEPTHS = (1, 8, 32)
QUICK = (4,)
NAMES = 200
DIRECTORIES, FILES = 20, 20

DROP_CACHES = "/proc/sys/vm/drop_caches"


def hits() -> list[str]:
    return [f"flat/present-{number}" for number in range(NAMES)]


def misses() -> list[str]:
    return [f"flat/absent-{number}" for number in range(NAMES)]


def lowest(directory: str) -> None:
    """Fills the layer that has everything."""
    os.mkdir(os.path.join(directory, "flat"))
    for name in ("flat/every", *hits()):
        _touch(directory, name)
    for number in range(DIRECTORIES):
        os.makedirs(os.path.join(directory, f"walk/{number}"))
        for file in range(FILES):
            _touch(directory, f"walk/{number}/{file}")


def higher(directory: str) -> None:
    """Fills a layer that has every directory again and one file of each, so that the union's entries stay the same.

    The file makes the directory: where the layers below are seen too, making a directory again would change nothing.
    """
    for name in ("flat/every", *(f"walk/{number}/0" for number in range(DIRECTORIES))):
        os.makedirs(os.path.join(directory, os.path.dirname(name)), exist_ok=True)
        _touch(directory, name)


def _touch(directory: str, name: str) -> None:
    with open(os.path.join(directory, name), "w") as file:
        file.write(name)


def layers(depth: int) -> list[Layer]:
    return [lowest, *[higher] * (depth - 1)]


def absent(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    raise AssertionError(f"{path} is in no layer and was found")


def walk(path: str) -> int:
    """The number of entries below `path`, each of them stat'ed."""
    count = 0
    with os.scandir(path) as entries:
        for entry in entries:
            count += 1
            entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                count += walk(entry.path)
    return count


def can_drop_caches() -> bool:
    return os.access(DROP_CACHES, os.W_OK)


def drop_dentries() -> None:
    """Make every dentry and inode of the machine that nobody holds cold; clean pages of data stay."""
    with open(DROP_CACHES, "w") as control:
        control.write("2")


def run(subjects: Sequence[Subject], rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the subjects do."""
    depths = QUICK if quick else DEPTHS
    with ExitStack() as open_stacks:
        stacks = [(s.name, open_stacks.enter_context(s.stack(layers(depths[-1])))) for s in subjects]
        for turn in range(-1, rounds):  # round -1 warms the layers up
            for subject, stack in rotated(stacks, turn):
                for depth in depths:
                    with stack.writable(depth) as tree:
                        for measure, seconds in _once(tree):
                            if turn >= 0:
                                yield Sample("lookup", f"{measure}, {depth} deep", subject, seconds)


def _once(tree: Tree) -> Iterator[tuple[str, float]]:
    """One round on one tree: each measure with its seconds."""
    yield "new layer", tree.ready
    os.stat(os.path.join(tree.path, "flat"))
    present = [os.path.join(tree.path, name) for name in hits()]
    yield "hit", per_operation(os.stat, present)
    yield "hit again", per_operation(os.stat, present)
    yield "miss", per_operation(absent, [os.path.join(tree.path, name) for name in misses()])
    if can_drop_caches():
        tree.remount()
        drop_dentries()
        entries = DIRECTORIES * (FILES + 1)
        yield "cold walk", per_operation(walk, [os.path.join(tree.path, "walk")]) / entries
