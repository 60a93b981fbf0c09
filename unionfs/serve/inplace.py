"""Where pyfuse3's requests are answered: each in place, on trio's one thread; one that turns slow in another.

A hand-over to a thread takes longer than most requests. So none is made until the union says that work that takes long
begins (union/waiting.py): what was done of the operation is undone, and it is done again in a thread, while the others
go on. Every request is answered exactly once: OSError by its errno, anything unknown by EIO and a traceback in the log
(pyfuse3 would let it end the session).
"""

from __future__ import annotations

import errno
import functools
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import FUSEError

from unionfs.union.again import Again
from unionfs.union.waiting import Waiting

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_O = TypeVar("_O", bound="InPlaceOperations")

# They may wait for one disk, or for one copy-up, by the dozen.
_MOST_THREADS = 256


class _Slow(InterruptedError):
    """The operation turns slow in a thread that has others to serve; it is undone."""


class InPlace(threading.local, Waiting):
    """What the union tells. `entered` is of the calling thread: it answers in place."""

    entered = False

    def begins(self) -> None:
        if self.entered:
            raise _Slow(errno.EINTR, "to be done again in a thread")


class NoThread(OSError):
    """There is no thread to be had."""


async def in_thread(call: Callable[[], _T], *, limiter: trio.CapacityLimiter | None = None) -> _T:
    """`call()` in a thread. Raises NoThread."""
    begun = False

    def work() -> _T:
        nonlocal begun
        begun = True
        return call()

    try:
        return await trio.to_thread.run_sync(work, limiter=limiter)
    except RuntimeError:
        if begun:
            raise
        raise NoThread(errno.EAGAIN, "no thread can be started: see 'ulimit -u', and pids.max of its cgroup") from None


class InPlaceOperations(pyfuse3.Operations):
    """Requests are `answered` methods."""

    def __init__(
        self, in_place: InPlace, waiting: AbstractContextManager[None], give_back_descriptors: Callable[[], bool]
    ) -> None:
        """`in_place` is what the union tells of slow work; `waiting` is entered for as long as a request waits."""
        super().__init__()
        self._in_place = in_place
        self._waiting = waiting
        self._give_back_descriptors = give_back_descriptors
        self._threads = trio.CapacityLimiter(_MOST_THREADS)

    async def _elsewhere(self, call: Callable[[], _T]) -> _T:
        with self._waiting:
            try:
                return await in_thread(call, limiter=self._threads)
            except NoThread:
                _log.warning("no further thread can be started; others wait for the slow work of this one")
        return call()

    async def _pause(self, seconds: float) -> None:
        with self._waiting:
            await trio.sleep(seconds)


def answered(operation: Callable[Concatenate[_O, _P], _T]) -> Callable[..., Coroutine[Any, Any, _T]]:
    """A request served by a plain method, which may be called again while nothing it did shows."""

    @functools.wraps(operation)
    async def answer(self: _O, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        again = Again(self._give_back_descriptors)
        in_place = self._in_place
        while True:
            try:
                in_place.entered = True
                try:
                    return operation(self, *args, **kwargs)
                except _Slow:
                    pass
                finally:
                    in_place.entered = False
                return await self._elsewhere(functools.partial(operation, self, *args, **kwargs))
            except Exception as error:
                if not (isinstance(error, OSError) and again.cures(error)):
                    raise _fault(operation.__name__, error) from None
            await self._pause(again.pause)

    return answer


def _fault(operation: str, error: BaseException) -> FUSEError:
    """The answer to a request that failed with `error`."""
    if isinstance(error, FUSEError):
        return error
    if isinstance(error, OSError) and error.errno:
        _log.debug("%s: %s", operation, error)
        return FUSEError(error.errno)
    _log.error("%s failed in an unforeseen way; the caller gets EIO", operation, exc_info=error)
    return FUSEError(errno.EIO)
