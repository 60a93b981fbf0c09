"""What a transport wants to know of work that takes long: that it begins, and whether its caller still waits for it."""

from __future__ import annotations


class Waiting:
    """This one wants to know nothing; a transport has its own. Called by the thread that does the work."""

    def begins(self) -> None:
        """Work that takes long begins, or a wait for another's: others should be served meanwhile. Called once or more
        in one operation, with Stack.lock held or not, and as `check` only where the operation can still be undone.
        Raise InterruptedError if its thread has others to serve: the operation is undone, to be done in another."""

    def check(self) -> None:
        """Raise InterruptedError (EINTR) if nobody waits for this operation any more. Called between steps that can be
        undone."""

    def patience(self) -> float | None:
        """How many seconds to wait for another's work before the next `check`; None: until it is done."""
        return None
