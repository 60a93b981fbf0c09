"""A command under ptrace(2): something is done before each system call of it, and of every process that it begets, that
changes names on a disk or waits for the disk. Whoever makes the call stands still meanwhile."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Sequence

from unionfs.linux import libc

# Numbers by machine (asm/unistd.h); newer ones have only the calls that end in at.
_CALLS = {
    "x86_64": {
        "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88,
        "fsync": 74, "fdatasync": 75, "sync": 162, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265,
        "symlinkat": 266, "syncfs": 306, "renameat2": 316,
    },
    "aarch64": {
        "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "sync": 81, "fsync": 82,
        "fdatasync": 83, "syncfs": 267, "renameat2": 276,
    },
}  # fmt: skip
CALLS = {number: name for name, number in _CALLS.get(os.uname().machine, {}).items()}

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
# SYSGOOD, FORK, VFORK, CLONE, EXEC, EXITKILL
_OPTIONS = 1 | 2 | 4 | 8 | 0x10 | 0x100000
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80

_ptrace = libc.bind("ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, restype=ctypes.c_long)


class _Entry(ctypes.Structure):
    """The beginning of struct ptrace_syscall_info at a system call's entry."""

    _fields_ = [
        ("op", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3), ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64), ("stack_pointer", ctypes.c_uint64), ("nr", ctypes.c_uint64),
    ]  # fmt: skip


def before_each_change(command: Sequence[str], act: Callable[[str], None]) -> int:
    """Run `command` with nothing on its standard input, and `act(name of the call)` before each step; its exit code.

    To be called in a process without other children: all that end are waited for here.
    """
    first = os.fork()
    if not first:
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            _ptrace(_TRACEME, 0, None, None)
            os.execv(command[0], list(command))
        finally:
            os._exit(126)
    code = -1
    known: set[int] = set()
    while True:
        try:
            pid, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            return code
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if pid == first:
                code = os.waitstatus_to_exitcode(status)
            continue
        stop, event = os.WSTOPSIG(status), status >> 16
        deliver = 0
        if pid not in known:
            known.add(pid)
            if pid == first:
                _ptrace(_SETOPTIONS, pid, None, _OPTIONS)
        elif stop == _SYSCALL_STOP:
            if name := _entered(pid):
                act(name)
        elif not event:
            deliver = stop
        try:
            _ptrace(_SYSCALL, pid, None, deliver)
        except ProcessLookupError:
            pass  # killed while it stood still


def _entered(pid: int) -> str | None:
    """The name of the call whose entry the process stands at, if that is a step."""
    found = _Entry()
    try:
        _ptrace(_GET_SYSCALL_INFO, pid, ctypes.sizeof(found), ctypes.addressof(found))
    except ProcessLookupError:
        return None
    return CALLS.get(found.nr) if found.op == 1 else None
