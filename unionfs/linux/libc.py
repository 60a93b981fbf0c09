"""Typed prototypes of libc functions and raw system calls.

`bind` gives one prototype per signature (two for `prctl` can live side by side), with errno kept per
thread and turned into OSError, so wrappers elsewhere have no bodies to get wrong.
Thread-safe: ctypes saves errno per thread with use_errno.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)


def oserror(filename: object = None) -> NoReturn:
    """Raise the OSError of the thread's last failed call; `filename` names the culprit in its text."""
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), filename)


def _check(result: int, function: Any, arguments: tuple[Any, ...]) -> int:
    if result == -1:
        oserror(next((a for a in arguments if isinstance(a, bytes)), None))
    return result


def bind(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Callable[..., int]:
    """The libc function `name` with these argument types; -1 raises OSError(errno, text, first bytes argument).

    Raises AttributeError if this libc has no such function: use `syscall` for those.
    """
    prototype = ctypes.CFUNCTYPE(restype, *argtypes, use_errno=True)
    function = prototype((name, _libc))
    function.errcheck = _check  # type: ignore[assignment, unused-ignore]

    def call(*arguments: Any) -> int:
        while True:
            try:
                return function(*arguments)  # type: ignore[no-any-return]
            except InterruptedError:
                continue  # a signal handler ran; the call goes on, as Python's own do (PEP 475)

    return call


def syscall(number: int, *argtypes: Any) -> Callable[..., int]:
    """The system call `number` as a function; for calls that the oldest supported glibc (2.36) does not wrap."""
    raw = bind("syscall", ctypes.c_long, *argtypes, restype=ctypes.c_long)

    def call(*arguments: Any) -> int:
        return raw(number, *arguments)

    return call
