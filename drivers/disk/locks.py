"""File locks that are waited for with a bound, and name what was waited for and who holds it.

flock(2) has no timeout, and a signal to interrupt it would be the whole process's. So it is tried, at first often and
then every twentieth of a second, which is nothing beside what is done under these locks.

A wait of more than a second is reported once to what was given to tell_waits(): by then a user wonders what is
happening. Whoever holds a lock file for long writes into it what for.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from drivers.errors import TimedOut

PATIENCE = 120.0  # seconds: longer than anything done under a lock takes, except unpacking, which asks for more
SILENCE = 1.0  # seconds
_FIRST, _LAST = 0.0005, 0.05  # seconds between two tries
_MOST = 500  # bytes that are read of a lock file


_tell: Callable[[str], object] = len  # nobody is told


def tell_waits(tell: Callable[[str], object]) -> None:
    """Have `tell` be called, in whatever thread waits, with a line that says what this process waits for."""
    global _tell
    _tell = tell


def lock(fd: int, name: str, *, shared: bool = False, patience: float = PATIENCE) -> None:
    """flock(2) the open file `fd`, which a message calls `name`; waits for `patience` seconds at most.

    Raises TimedOut with the name and the process that holds the lock. The lock goes with the last descriptor.
    """
    _take(fd, lambda: f"{name}, which {holder(os.fstat(fd))} is using", shared=shared, patience=patience)


@contextmanager
def locked(path: str, *, shared: bool = False, patience: float = PATIENCE, purpose: str = "") -> Iterator[int]:
    """Hold the lock file `path`, made (0600) if missing, for the time of the `with`; its descriptor is given.

    `purpose` is what those who wait for it are told, as in "unpacking busybox:1"; a shared lock has none.
    Raises TimedOut, OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _take(fd, lambda: _use(fd, path), shared=shared, patience=patience)
        if not shared:
            _write(fd, purpose)
        yield fd
    finally:
        os.close(fd)


def _take(fd: int, what: Callable[[], str], *, shared: bool, patience: float) -> None:
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    begin = time.monotonic()
    told = False
    pause = _FIRST
    while True:
        try:
            fcntl.flock(fd, how)
            return
        except BlockingIOError:
            waited = time.monotonic() - begin
            if waited >= patience:
                raise TimedOut(f"waited {patience:g} s for {what()}") from None
            if waited >= SILENCE and not told:
                _tell(f"waiting for {what()}")
                told = True
        time.sleep(pause)
        pause = min(2 * pause, _LAST)


def _write(fd: int, purpose: str) -> None:
    """Write even an empty one: whoever held the lock before may have been killed."""
    with suppress(OSError):  # on a full disk others are told less
        if os.fstat(fd).st_size:
            os.ftruncate(fd, 0)
        if purpose:
            os.pwrite(fd, purpose.encode()[:_MOST], 0)


def _use(fd: int, path: str) -> str:
    purpose = os.pread(fd, _MOST, 0).decode(errors="replace")
    who = holder(os.fstat(fd))
    if not purpose:
        return f"{path}, which {who} is using"
    return f"{who}, which is {purpose if purpose.isprintable() else repr(purpose)}"


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
