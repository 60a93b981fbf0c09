"""What do the small operations on files cost, each a batch on files of their own?

  create + write 1 kB + close        of new files in one directory of the lower layer
  first open + read + close, lower   of files of 1 kB that the union has not been asked for, unlike their directory
  open + read + close, lower         the same files once more
  … , lower program                  both of files that begin as a program does: a union may treat them otherwise
  rename, unlink                     of files in the upper directory, within their directory
  mkdir + rmdir                      one after the other; the time is that of the pair
  unlink, lower                      of files that the lower layer has, which leaves a whiteout; not on mergerfs

The union was just mounted. What is in the lower layer is in the caches of its own file system.

Not measured: renames across directories, hard links, and what changes of attributes cost (copyup.py has chmod).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from benchmarks.timing import Sample, per_operation, rotated
from benchmarks.unions import Mounted, Union, lower_directory

FILES, QUICK_FILES = 400, 50
DIRECTORIES = ("read", "programs", "gone", "new")
DATA = bytes(1000)
PROGRAM = b"\x7fELF" + bytes(996)  # as elf(5) says


def fill(directory: str, files: int) -> None:
    for name in DIRECTORIES:
        os.mkdir(os.path.join(directory, name))
    for path in (*paths(directory, "read", files), *paths(directory, "gone", files)):
        create(path)
    for path in paths(directory, "programs", files):
        create(path, PROGRAM)


def paths(tree: str, directory: str, files: int) -> list[str]:
    return [os.path.join(tree, directory, str(number)) for number in range(files)]


def create(path: str, content: bytes = DATA) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, content)
    os.close(descriptor)


def read(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 4096)
    os.close(descriptor)


def rename(path: str) -> None:
    os.rename(path, path + "r")


def make_and_remove(path: str) -> None:
    os.mkdir(path)
    os.rmdir(path)


def run(unions: Sequence[Union], work: str, rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the unions do."""
    files = QUICK_FILES if quick else FILES
    with lower_directory(work, lambda directory: fill(directory, files)) as lower:
        for turn in range(rounds):
            for union in rotated(unions, turn):
                with union.over(lower) as tree:
                    for measure, seconds in _once(tree, files, whiteouts=union.copies_up):
                        yield Sample("metadata", measure, union.name, seconds)


def _once(tree: Mounted, files: int, *, whiteouts: bool) -> Iterator[tuple[str, float]]:
    """One round on one union: each measure with its seconds per operation."""
    for name in DIRECTORIES:
        os.stat(os.path.join(tree.path, name))
    new = paths(tree.path, "new", files)
    yield "create + write 1 kB + close", per_operation(create, new)
    for directory, kind in (("read", "lower"), ("programs", "lower program")):
        lower = paths(tree.path, directory, files)
        yield f"first open + read + close, {kind}", per_operation(read, lower)
        yield f"open + read + close, {kind}", per_operation(read, lower)
    yield "rename", per_operation(rename, new)
    yield "unlink", per_operation(os.unlink, [path + "r" for path in new])
    yield "mkdir + rmdir", per_operation(make_and_remove, new)
    if whiteouts:
        yield "unlink, lower", per_operation(os.unlink, paths(tree.path, "gone", files))
