"""Whiteouts beside entries that were made since, and hide them: dropped when the entries are on the disk (`order`). A
layer at rest has none, except after a crash. Called with Stack.lock held.
"""

from __future__ import annotations

import contextlib

from unionfs.union import form, order, whiteout
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack

# A commit takes as long as some tens of syncs.
_MANY = 1024


def drop(stack: Stack, parent: Node, name: bytes) -> None:
    """The whiteout of `name`, now or later."""
    directory = stack.upper(parent)
    if order.is_kept(stack, directory.branch):
        whiteout.drop(directory, name)
        return
    parent.lookups += 1
    stack.outlived.append((parent, name))


def are_many(stack: Stack) -> bool:
    return len(stack.outlived) >= _MANY


def drop_all(stack: Stack) -> None:
    """At the end of an operation: the lock is let go of. Where the disk fails they stay, and do no harm; where the
    thread has others to serve they are left to another's operation."""
    if not stack.outlived:
        return
    try:
        stack.waiting.begins()
    except InterruptedError:
        return
    names, stack.outlived = stack.outlived, []
    try:
        with stack.unlocked():
            for branch in stack.branches:
                if branch.writable:
                    order.everything_first(stack, branch)
    except OSError:
        again = set(names)
    else:
        again = set(stack.outlived)  # removed and made again meanwhile
    for parent, name in names:
        if parent.layers and (parent, name) not in again:
            with contextlib.suppress(OSError):  # of this one: the others are no worse for it
                _drop(stack, parent, name)
                stack.directories.trim()
    for parent, _ in names:
        stack.unreference(parent, 1)


def _drop(stack: Stack, parent: Node, name: bytes) -> None:
    directory = stack.upper(parent)
    entry = directory.stat(name)
    if entry is not None and not form.is_overlay_whiteout(entry):
        with stack.unseen(parent):
            whiteout.drop(directory, name)
