"""The files of `.wh..wh.plnk/`, to which hard links lead in layers that docker of 2013 made of AUFS branches.

AUFS cannot link a file of a lower branch, and so keeps one more name of its copy there. The directory is no part of the
tree: the first link to such a file becomes the file, and the others links to the first, as long as it has its name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from drivers.archive.limits import Limits
from drivers.archive.policy import Path
from drivers.archive.reader import CHUNK, Entry
from drivers.archive.tree import Names

_MOST = 1 << 16  # they are kept in memory, each with its attributes
_CAPABILITY = b"security.capability"  # the one extended attribute that docker packed
_CAPABILITY_SIZE = 24  # linux/capability.h, XATTR_CAPS_SZ


@dataclass(slots=True)
class Kept:
    """`entry` has its attributes, `first` is where it has become a file, and with which device and inode number."""

    entry: Entry
    offset: int
    size: int
    first: tuple[Path, int, int] | None = None


def names(limits: Limits) -> Names:
    """Theirs, held to how many there may be."""
    return Names(replace(limits, entries=min(limits.entries, _MOST)))


class PseudoLinks:
    """By name in that directory; their content is in one unnamed file, which is made for the first of them."""

    def __init__(self, limits: Limits) -> None:
        self._names = names(limits)
        self._kept: dict[bytes, Kept] = {}
        self._fd = -1
        self._end = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def keep(self, name: bytes, entry: Entry, content: Iterable[bytes]) -> None:
        """ArchiveError, OSError."""
        self._names.add((name,))
        if self._fd < 0:
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())
        offset = self._end
        for piece in content:
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._fd, view, self._end)
                view, self._end = view[written:], self._end + written
        xattrs = {key: value for key, value in entry.xattrs.items() if key == _CAPABILITY}
        if len(xattrs.get(_CAPABILITY, b"")) > _CAPABILITY_SIZE:
            xattrs = {}
        self._kept[name] = Kept(replace(entry, xattrs=xattrs), offset, self._end - offset)

    def find(self, name: bytes) -> Kept | None:
        return self._kept.get(name)

    def content(self, kept: Kept) -> Iterator[bytes]:
        end = kept.offset + kept.size
        for position in range(kept.offset, end, CHUNK):
            yield os.pread(self._fd, min(CHUNK, end - position), position)
