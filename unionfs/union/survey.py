"""Which names in branches lead to a number: what a walk of them has met.

It takes 20 bytes and the name for each name, and one or two microseconds. No lock is held: who asks looks at what is
there now. Nothing is followed out of the branch, and a directory that cannot be read is left out.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from unionfs.linux import files
from unionfs.union import form, identity
from unionfs.union.branch import Branch
from unionfs.union.directories import open_path
from unionfs.union.identity import Source

# Names sorted at once: that long nobody else runs, 10 ms.
_SEGMENT = 1 << 14

# The numbers that a file may go by, by (branch, path, source, inode number); the first is the likeliest.
Numbers = Callable[[Branch, bytes, Source, int], Sequence[int]]
# The source of a directory's files, by (branch, descriptor, status); None: they are not to be found by numbers.
SourceOf = Callable[[Branch, int, os.stat_result], Source | None]


class _Segment(NamedTuple):
    """Names in the order of `numbers`; that at `i` is `text[ends[i]:ends[i + 1]]` in `directories[i]`."""

    numbers: array[int]
    directories: array[int]
    ends: array[int]
    text: bytes


class Survey:
    """Directories have indexes, the branches' roots the first ones; `numbers` has the number of each."""

    def __init__(self, roots: int) -> None:
        self.numbers = array("Q", [identity.ROOT] * roots)
        self._roots = roots
        self._parents = array("I", range(roots))
        self._names = [b""] * roots
        self._segments: list[_Segment] = []
        self._pending: list[tuple[int, int, bytes]] = []

    def names(self, number: int) -> Iterator[tuple[int, bytes]]:
        """The names that led to `number`, as (directory, name)."""
        for segment in self._segments:
            at = bisect_left(segment.numbers, number)
            while at < len(segment.numbers) and segment.numbers[at] == number:
                yield segment.directories[at], segment.text[segment.ends[at] : segment.ends[at + 1]]
                at += 1

    def path(self, directory: int) -> list[bytes]:
        """The names that lead to a directory from its branch's root."""
        names = []
        while directory >= self._roots:
            names.append(self._names[directory])
            directory = self._parents[directory]
        return names[::-1]

    def add(self, number: int, directory: int, name: bytes) -> None:
        self._pending.append((number, directory, name))
        if len(self._pending) == _SEGMENT:
            self.seal()

    def add_directory(self, number: int, parent: int, name: bytes) -> int:
        """Its index."""
        self.numbers.append(number)
        self._parents.append(parent)
        self._names.append(name)
        return len(self._names) - 1

    def seal(self) -> None:
        """What was added is found from now on."""
        pending, self._pending = sorted(self._pending), []
        ends = array("I", [0])
        for _, _, name in pending:
            ends.append(ends[-1] + len(name))
        self._segments.append(
            _Segment(
                array("Q", (number for number, _, _ in pending)),
                array("I", (directory for _, directory, _ in pending)),
                ends,
                b"".join(name for _, _, name in pending),
            )
        )


def walk(branches: Sequence[tuple[Branch, int]], source_of: SourceOf, numbers: Numbers) -> Survey:
    """A survey of branches, each with a descriptor on its root."""
    survey = Survey(len(branches))
    for index, (branch, root) in enumerate(branches):
        unread: list[tuple[int, bytes]] = [(index, b"")]
        while unread:
            parent, name = unread.pop()
            try:
                unread += _read(survey, branch, root, parent, name, source_of, numbers)
            except OSError:
                continue
    survey.seal()
    return survey


def _read(
    survey: Survey, branch: Branch, root: int, parent: int, name: bytes, source_of: SourceOf, numbers: Numbers
) -> list[tuple[int, bytes]]:
    """Add the directory `name`, and what it has but directories: those are returned, to be read. The root has no name.
    """
    fd = open_path(root, [*survey.path(parent), name]) if name else os.dup(root)
    try:
        entry = os.fstat(fd)
        source = source_of(branch, fd, entry)
        if source is None:
            return []
        directory = parent
        if name:
            mine = numbers(branch, files.fd_path(fd, b"."), source, entry.st_ino)
            directory = survey.add_directory(mine[0], parent, name)
            for number in mine:
                survey.add(number, parent, name)
        inside = []
        with os.scandir(files.fd_path(fd)) as entries:
            for found in entries:
                if form.is_reserved(found.name):
                    continue
                if found.is_dir(follow_symlinks=False):
                    inside.append((directory, found.name))
                    continue
                for number in numbers(branch, files.fd_path(fd, found.name), source, found.inode()):
                    survey.add(number, directory, found.name)
        return inside
    finally:
        os.close(fd)
