"""Running zfs(8) and zpool(8). They have no interface for programs, so errors are known by what they print."""

from __future__ import annotations

import errno
import os
import time

from drivers.disk.programs import find
from drivers.errors import TimedOut, Unavailable

# What comes after "cannot …: " (libzfs_util.c, zfs_error messages), and what it means. The first that is found counts.
_MEANINGS = (
    ("has dependent clones", errno.ENOTEMPTY),
    ("dataset is busy", errno.EBUSY),
    ("snapshot is busy", errno.EBUSY),
    ("it's being held", errno.EBUSY),
    ("dataset already exists", errno.EEXIST),
    ("dataset does not exist", errno.ENOENT),
    ("parent does not exist", errno.ENOENT),
    ("no such pool", errno.ENOENT),
    ("could not find any snapshots", errno.ENOENT),
    ("out of space", errno.ENOSPC),
    ("quota exceeded", errno.EDQUOT),
    ("read-only", errno.EROFS),
    ("permission denied", errno.EPERM),
)
_ANSWER_SECONDS = 120.0  # a pool whose disk has gone makes commands wait for ever
_FIRST_PAUSE, _LAST_PAUSE = 0.02, 0.5


def zfs(*arguments: str, held: int | None = None) -> str:
    """What `zfs ARGUMENTS` prints. It keeps the descriptor `held` open, and with that a lock.

    Raises OSError with what it said; Unavailable if it cannot be run, or the module is not loaded; TimedOut.
    """
    return _run("zfs", arguments, held)


def zpool(*arguments: str) -> str:
    """As zfs()."""
    return _run("zpool", arguments, None)


def missing() -> str:
    """A sentence on what zfs lacks here, "" if it has all it needs."""
    for program in ("zfs", "zpool"):
        if not find(program):
            return f"{program} is not installed: apt-get install zfsutils-linux (in Debian's component contrib)"
    if not os.path.exists("/dev/zfs"):
        return "/dev/zfs is missing: modprobe zfs (the module is made by Debian's package zfs-dkms, component contrib)"
    return ""


def _run(program: str, arguments: tuple[str, ...], held: int | None) -> str:
    import subprocess  # late: a container that is only mounted needs none of it

    path = find(program)
    if path is None:
        raise Unavailable(missing())
    command = subprocess.Popen(
        [path, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"}, pass_fds=() if held is None else (held,), text=True, errors="replace",
    )  # fmt: skip
    try:
        output, said = command.communicate(timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        command.kill()  # it is not waited for: the kernel may not let go of it
        raise TimedOut(
            f"{program} {arguments[0]} has not answered for {_ANSWER_SECONDS:.0f} s: see zpool status"
        ) from None
    if command.returncode == 0:
        return output
    if reason := missing():
        raise Unavailable(reason)
    reason = " ".join(said.split()) or f"it ended with {command.returncode}"
    number = next((number for text, number in _MEANINGS if text in reason), errno.EIO)
    raise OSError(number, f"{program} {arguments[0]}: {reason}")


def destroy(name: str, patience: float) -> None:
    """Destroy a dataset with all its snapshots, whoever made them. None of that name is fine.

    A dataset is busy for a moment after its last unmount, and as long as some mount namespace has a copy of the mount:
    this tries again for `patience` seconds. When that was not enough, or something that others hold (zfs-hold(8)) or
    have cloned is in the way, its snapshots are marked: each goes when nobody needs it any more. Then raises OSError,
    EBUSY.
    """
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            zfs("destroy", "-r", name)
            return
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            if error.errno == errno.ENOTEMPTY or time.monotonic() >= deadline:
                break
        time.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE)
    try:
        zfs("destroy", "-d", f"{name}@%")
    except OSError:
        pass  # it has none, or one of them is mounted
    raise OSError(errno.EBUSY, f"{name} is mounted, held or cloned; it is deleted by the next clean-up after that")
