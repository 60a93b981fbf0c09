"""Where files of the writable branch were that have left the node table since that branch was surveyed (`by_number`).

What changes place there has a node meanwhile: so the survey, and this where it knows better, are together never wrong
about a file that is not in the table.
"""

from __future__ import annotations

from unionfs.union.nodes import Node

# Names; about 300 bytes each. With more, it takes a survey again.
_MOST = 1 << 16


class Forgotten:
    """Guarded by Stack.lock. Names are (number of the directory, name)."""

    def __init__(self) -> None:
        self._names: dict[int, dict[tuple[int, bytes], None]] = {}
        self._count = 0

    @property
    def is_full(self) -> bool:
        return self._count > _MOST

    def add(self, node: Node) -> None:
        """Of a directory only the last name counts; another file may have some that nobody has asked for since."""
        if node.is_directory:
            self._count -= len(self._names.pop(node.ino, ()))
        names = self._names.setdefault(node.ino, {})
        self._count -= len(names)
        for parent, name in node.names:
            names[parent.ino, name] = None
        self._count += len(names)

    def names(self, number: int) -> list[tuple[int, bytes]]:
        return list(self._names.get(number, ()))
