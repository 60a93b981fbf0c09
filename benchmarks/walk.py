"""What does finding every name of a lower tree cost, and finding names in random order?

Two trees of 4,000 files each, one with 100 files per directory and one with 4. Measured per file:
  cold walk             listing the tree with lstat(2) of every entry; the union was just mounted
  second walk           the same once more: with the first listing the kernel forgets a directory's access time, and any
                        FUSE server is asked for its attributes again
  warm walk             the same a third time, and from then on
and per name, in the tree with 100 files per directory, of which the union, just mounted, knows nothing:
  cold random lstat     half of the files, in random order
  missing name          names that no layer has, spread over the directories, asked for the first time
  missing name, again   the same names once more

What is cold is the union: the lower tree's own dentries and inodes are in memory, for every union alike. lookup.py has
the walk where those are cold too, and stacks of many layers.

Not measured: directories with very many entries, and several clients at once.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.lookup import absent, walk
from benchmarks.timing import Sample, per_operation, rotated, seconds
from benchmarks.unions import Mounted, Union, lower_directory

FILES, QUICK_FILES = 4000, 400
PER_DIRECTORY = (100, 4)


def fill(directory: str, files: int, per_directory: int) -> None:
    """`files` empty files below `directory`, which must exist, in directories of `per_directory` each."""
    for number in range(files // per_directory):
        below = os.path.join(directory, str(number))
        os.mkdir(below)
        for file in range(per_directory):
            os.mknod(os.path.join(below, str(file)))


def fill_both(directory: str, files: int) -> None:
    for per_directory in PER_DIRECTORY:
        tree = os.path.join(directory, str(per_directory))
        os.mkdir(tree)
        fill(tree, files, per_directory)


def run(unions: Sequence[Union], work: str, rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the unions do."""
    files = QUICK_FILES if quick else FILES
    with lower_directory(work, lambda directory: fill_both(directory, files)) as lower:
        walk(lower)
        for turn in range(rounds):
            for union in rotated(unions, turn):
                with union.over(lower) as tree:
                    for measure, value in _once(tree, files):
                        yield Sample("walk", measure, union.name, value)


def _once(tree: Mounted, files: int) -> Iterator[tuple[str, float]]:
    """One round on one union: each measure with its seconds per name."""
    for per_directory in PER_DIRECTORY:
        path = os.path.join(tree.path, str(per_directory))
        for state in ("cold", "second", "warm"):
            yield f"{state} walk, {per_directory} files a directory", seconds(partial(walk, path)) / files
    tree.remount()
    order = random.Random(3)
    big = PER_DIRECTORY[0]
    numbers = order.sample(range(files), files // 2)
    present = [os.path.join(tree.path, str(big), str(n // big), str(n % big)) for n in numbers]
    missing = [f"{path}-absent" for path in present[: files // 8]]
    yield "cold random lstat", per_operation(os.lstat, present)
    yield "missing name", per_operation(absent, missing)
    yield "missing name, again", per_operation(absent, missing)
