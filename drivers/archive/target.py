"""What an archive is extracted into: the tree of an active snapshot, or the directories that it is made of."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from drivers.api import Mount, Snapshotter
from drivers.archive.layered import Onto
from drivers.disk.locks import holder
from drivers.errors import InUse
from drivers.mounts.tree import private


@contextmanager
def opened(driver: Snapshotter, key: str) -> Iterator[int | Onto]:
    """The active snapshot `key`, which is not mounted, for extract(). Raises NotFound, WrongState, InUse, other
    DriverErrors, OSError.

    A tree that needs no file system of its own is not mounted: it would take a server for each layer of an image.
    """
    directories = driver.directories(key)
    with ExitStack() as held:
        if directories is None:
            yield held.enter_context(private(driver.mounts(key)))
            return
        own = held.enter_context(private([Mount("bind", directories.own, ("rw",))]))
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as a union's server locks it (unionfs.union.branch)
        except BlockingIOError:
            raise InUse(f"{holder(os.fstat(own))} writes to {directories.own}") from None
        parents = []
        for path in directories.parents:
            parents.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            held.callback(os.close, parents[-1])
        yield Onto(own, parents, directories.form)
