"""Which branches have the names of a directory, found out by reading each branch's part once, top first.

So what a name is can be resolved where it was found (`Stack.resolve`, `among`), and a directory costs in proportion to
what is in its parts, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterable

from unionfs.union import form
from unionfs.union.branch import Branch
from unionfs.union.cookies import BEFORE, LAST, end_of_bucket
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack

_PREFIX = len(form.PREFIX)


class Merge:
    """The names whose hashes are larger than `after` and not larger than `last`.

    `where` has for each the branches that have it, top first, down to one that hides the rest; for a name whose
    whiteout does not tell it, all those that may hide it as well. What the writable branch hides, what overlayfs's
    whiteouts do, and those, is for `Stack.resolve` to tell.
    """

    __slots__ = ("_alone", "_entered", "_hidden", "_hides", "_whiteouts", "after", "last", "where")

    def __init__(self, after: int = BEFORE) -> None:
        self.after = after
        self.last = LAST
        self.where: dict[bytes, tuple[Branch, ...] | list[Branch]] = {}
        self._hidden: set[bytes] = set()  # by the branches above the one that is read
        self._whiteouts: list[bytes] = []  # in that one
        self._hides = False
        self._alone: tuple[Branch, ...] = ()
        self._entered: tuple[Branch, ...] = ()

    def enter(self, branch: Branch) -> None:
        """The names that follow are in this branch, whose whiteouts count unless it is writable: what is in it then
        may not be there later."""
        self._hidden.update(self._whiteouts)
        self._whiteouts.clear()
        self._hides = not branch.writable
        self._alone = (branch,)
        self._entered = (*self._entered, branch)

    def add(self, names: Iterable[bytes]) -> None:
        after, last, where, hidden, alone = self.after, self.last, self.where, self._hidden, self._alone
        longest = form.PREFIXED_MAX
        for name in names:
            if name.startswith(form.PREFIX):
                hides = name[_PREFIX:]
                if self._hides and after < hash(hides) <= last:
                    self._whiteouts.append(hides)
            elif after < hash(name) <= last and name not in hidden:
                if len(name) > longest:
                    where[name] = self._entered
                    continue
                above = where.setdefault(name, alone)
                if above is alone:
                    continue
                if isinstance(above, list):
                    above.append(alone[0])
                else:
                    where[name] = [*above, *alone]

    def halve(self) -> bool:
        """Keep the lower half of the range, up to the end of a bucket of cookies; False if it is no more than one."""
        last = end_of_bucket((self.after + self.last) // 2)
        if last >= self.last:
            return False
        self.last = last
        self.where = {name: branches for name, branches in self.where.items() if hash(name) <= last}
        self._hidden = {name for name in self._hidden if hash(name) <= last}
        self._whiteouts = [name for name in self._whiteouts if hash(name) <= last]
        return True


def names(stack: Stack, node: Node) -> dict[bytes, tuple[Branch, ...]]:
    """The names in a directory, top branch first, each with the branches to resolve it `among`. Some may be whited
    out all the same: `Stack.resolve` tells."""
    merge = Merge()
    for branch in node.layers:
        merge.enter(branch)
        merge.add(stack.directories.get(node, branch).names)
    upper = node.layers[0] if node.is_upper else None
    return {
        name: tuple(branches) if upper is None or branches[0] is upper else (upper, *branches)
        for name, branches in merge.where.items()
    }


def is_empty(stack: Stack, node: Node) -> bool:
    hidden: set[bytes] = set()
    for branch in node.layers:
        hides = []
        for name in stack.directories.get(node, branch).scan():
            if name.startswith(form.PREFIX):
                hides.append(name.removeprefix(form.PREFIX))
            elif name not in hidden:
                among = node.layers if form.is_long(name) else (branch,)
                if stack.resolve(node, name, among=among) is not None:
                    return False
                hides.append(name)  # by overlayfs's whiteout
        hidden.update(hides)
    return True
