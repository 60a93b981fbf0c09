"""File locks that are waited for with a bound, and name what was waited for and who holds it.

flock(2) has no timeout, and a signal to interrupt it would be the whole process's. So it is tried, at first often and
then every twentieth of a second, which is nothing beside what is done under these locks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from drivers.errors import TimedOut

PATIENCE = 120.0  # seconds: longer than what is done under a lock takes, unpacking aside, which asks for more
_FIRST, _LAST = 0.0005, 0.05  # seconds between two tries


def lock(fd: int, name: str, *, shared: bool = False, patience: float = PATIENCE) -> None:
    """flock(2) the open file `fd`, which a message calls `name`; waits for `patience` seconds at most.

    Raises TimedOut with the name and the process that holds the lock. The lock goes with the last descriptor.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    deadline = time.monotonic() + patience
    pause = _FIRST
    while True:
        try:
            fcntl.flock(fd, how)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimedOut(f"waited {patience:g} s for {name}, which {holder(os.fstat(fd))} is using") from None
        time.sleep(pause)
        pause = min(2 * pause, _LAST)


@contextmanager
def locked(path: str, *, shared: bool = False, patience: float = PATIENCE) -> Iterator[int]:
    """Hold the lock file `path`, made (0600) if missing, for the time of the `with`; its descriptor is given.

    Raises TimedOut, OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        lock(fd, path, shared=shared, patience=patience)
        yield fd
    finally:
        os.close(fd)


def holder(status: os.stat_result, kind: str = "FLOCK", byte: int | None = None) -> str:
    """The process that has the file locked, as "process 4321 (runtime)", by /proc/locks (proc_locks(5)).

    `kind` is "FLOCK" or "POSIX" (fcntl), for which `byte` is one that is locked for writing. Locks of processes in
    other pid namespaces are not seen: "another process".
    """
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with open("/proc/locks", encoding="ascii") as table:
        for line in table:
            # "1: FLOCK ADVISORY WRITE 4321 fd:00:131 0 EOF"; a waiting one has "->" as its second field.
            fields = line.split()
            if len(fields) < 8 or fields[1] != kind or fields[5] != file or fields[4] == "0":
                continue
            if byte is None or (fields[3] == "WRITE" and _covers(fields[6], fields[7], byte)):
                return f"process {fields[4]}{_command(int(fields[4]))}"
    return "another process"


def _covers(first: str, last: str, byte: int) -> bool:
    return int(first) <= byte and (last == "EOF" or byte <= int(last))


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f" ({file.read().strip()})"
    except OSError:
        return ""
