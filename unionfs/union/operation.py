"""One operation on a union: the lock, what it holds while it lasts, and what follows at its end."""

from __future__ import annotations

from unionfs.union import outlived
from unionfs.union.stack import Stack


class Operation:
    """Entered, it holds the lock; the nodes adopted within stay in the table until its end, whatever way it ends. One
    object serves all threads."""

    __slots__ = ("_stack",)

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def __enter__(self) -> None:
        self._stack.lock.acquire()
        self._stack.held.nodes = []

    def __exit__(self, *error: object) -> None:
        stack = self._stack
        try:
            if stack.held.nodes:
                stack.release_held()
            if stack.outlived and outlived.are_many(stack):
                outlived.drop_all(stack)
            stack.directories.trim()
        finally:
            stack.lock.release()
        if stack.held.changed:
            stack.tell_changes()
