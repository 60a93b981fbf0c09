"""A pyfuse3 + trio session: mount, answer until the last user is gone, end.

    serve()  main thread   signals, mounting, INIT, requests, the control socket, in one trio run
             a thread      the first stat of the mount: its answer is what makes the mount ready
             a thread      unmounting (`serving`)
             a thread      the end, where the main thread does not come to it (`watch`)

SIGTERM and SIGINT unmount. If the mount is in use it is detached: no new user finds it, those it has go on until they
are done, so that nothing they wrote is lost; a second signal ends the session under them, as the first does where the
mount was handed over and is not to be found.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import pyfuse3
import trio

from unionfs.serve.inplace import InPlace, NoThread, in_thread
from unionfs.serve.pyfuse import UnionOperations
from unionfs.transport import control, info, remount, serving
from unionfs.transport.delivery import Delivery
from unionfs.transport.interrupt import Interrupts
from unionfs.transport.watch import Watch
from unionfs.union import synchronous
from unionfs.union.branch import Branch
from unionfs.union.fs import UnionFs
from unionfs.union.numbers import Xino

# Requests under way. Only those in threads can pile up, and a crowd that waits for fsync must not keep the next look-up
# from being read. A task costs its read buffer, as far as it was ever filled.
_REQUESTS_AT_ONCE = 1000

_log = logging.getLogger(__name__)


def serve(
    branches: Sequence[Branch],
    delivery: Delivery,
    *,
    flags: Collection[str],
    allow_other: bool,
    ready: Callable[[], None],
    volatile: bool = False,
    xino: Xino = "auto",
    reason: str = "the direct transport was not tried",
) -> None:
    """Mount the union of `branches` (top first; closed at the end) and serve it; return when it is unmounted.

    `ready` is called once, from the main thread, when the mount answers and is delivered. `reason` is why this
    transport was chosen, for `unionfs info`. Raises OSError when the union or the mount is refused.
    """
    serving.prepare_process()
    in_place = InPlace()
    fs = synchronous.kind(flags, UnionFs)(branches, volatile=volatile, xino=xino, waiting=in_place)
    started = time.time()

    def facts() -> info.Facts:
        nodes, open_files = fs.counts()
        return {
            "transport": {"name": "pyfuse3", "reason": reason},
            "protocol": None,
            "flags": [],
            "missing": [],
            "passthrough": {"enabled": False, "reason": "pyfuse3 has none"},
            "lends": "none",
            "volatile": volatile,
            "xino": xino,
            "spin_us": 0,
            "branches": info.branch_facts(branches),
            "nodes": nodes,
            "open_files": open_files,
            "requests": None,
            "started": started,
            "pid": os.getpid(),
        }

    answers = {b"info": lambda _: facts(), **remount.orders(branches)}
    with contextlib.ExitStack() as at_end:
        at_end.callback(fs.close)
        unmounter = serving.Unmounter()
        at_end.callback(unmounter.close)
        try:
            trio.run(_session, fs, in_place, delivery, unmounter, flags, allow_other, ready, answers)
        except ExceptionGroup as group:  # what a task of a nursery raises comes in one
            refusal, other = group.split(OSError)
            if refusal is None or other is not None:
                raise
            raise _first(refusal) from None


def _first(error: Exception) -> Exception:
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


async def _session(
    fs: UnionFs,
    in_place: InPlace,
    delivery: Delivery,
    unmounter: serving.Unmounter,
    flags: Collection[str],
    allow_other: bool,
    ready: Callable[[], None],
    answers: control.Answers,
) -> None:
    interrupts = Interrupts()
    # Before the mount: a signal between the two would leave it without a server.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        fd = delivery.mount(flags, allow_other, dont_mask=False)
        try:
            watch = Watch(fd, lambda: _leave(fd, delivery, unmounter))
        except BaseException:
            os.close(fd)
            delivery.close()
            unmounter.detach(delivery.identity)
            raise
        try:
            # libfuse takes a descriptor that is mounted already by this name, and does not unmount it.
            pyfuse3.init(UnionOperations(fs, interrupts, in_place), f"/dev/fd/{fd}", set())
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_on_signal, signals, delivery, unmounter, watch)
                    nursery.start_soon(_announce, delivery, ready, interrupts, answers)
                    try:
                        await pyfuse3.main(max_tasks=_REQUESTS_AT_ONCE)
                    except* ConnectionAbortedError:
                        # Ended while a worker was about to read (fs/fuse/dev.c: ECONNABORTED instead of ENODEV).
                        _log.info("%s: the connection has ended", delivery.name)
                    fs.close()  # before all else: who has unmounted it goes on to its branches
                    nursery.cancel_scope.cancel()
            finally:
                pyfuse3.close(unmount=False)
        finally:
            watch.close()
            delivery.close()
            unmounter.detach(delivery.identity)


def _leave(fd: int, delivery: Delivery, unmounter: serving.Unmounter) -> None:
    # With its last descriptor the kernel aborts the connection: to detach it then waits for nobody.
    os.close(fd)
    serving.leave(delivery.identity, unmounter)


async def _announce(
    delivery: Delivery,
    ready: Callable[[], None],
    interrupts: Interrupts,
    answers: control.Answers,
) -> None:
    """Wait until the mount answers, say so, and be found by those who unmount it or ask about it."""
    with interrupts:
        await in_thread(delivery.deliver)
    try:
        announcement = control.Announcement(delivery.identity)
    except OSError as error:
        _log.warning("%s: 'unionfs umount' will not wait for this server", error)
        announcement = None
    _log.info("%s: mounted, process %d", delivery.name, os.getpid())
    ready()
    if announcement is None:
        return
    try:
        while True:
            await trio.lowlevel.wait_readable(announcement.socket)
            try:
                with announcement.client() as client:
                    if client is not None:
                        await _attend(trio.socket.from_stdlib_socket(client), answers)
            except OSError as error:
                _log.warning("who asks for this mount has to wait: %s", error.strerror)
                await trio.sleep(control.PAUSE_SECONDS)
    finally:
        announcement.withdraw()


async def _attend(connection: trio.socket.SocketType, answers: control.Answers) -> None:
    """control.serve_one(), for trio. One client at a time, whatever comes."""
    with connection, contextlib.suppress(OSError):
        request = b""
        with trio.move_on_after(control.PATIENCE_SECONDS) as limit:
            while not control.is_complete(request):
                part = await connection.recv(64)
                if not part:
                    break
                request += part
        if limit.cancelled_caught:
            return
        try:
            said = memoryview(await in_thread(functools.partial(control.answer, request, answers)))
        except NoThread:
            said = memoryview(control.answer(request, answers))
        with trio.move_on_after(control.PATIENCE_SECONDS):
            while said:
                said = said[await connection.send(said) :]


async def _end_on_signal(
    signals: AsyncIterator[int], delivery: Delivery, unmounter: serving.Unmounter, watch: Watch
) -> None:
    async for number in signals:
        _log.info("%s: %s", delivery.name, signal.Signals(number).name)
        if delivery.is_detached and not unmounter.places(delivery.identity):
            watch.hurry()
            pyfuse3.terminate()
            return
        unmounter.unmount(delivery.identity)
        break
    async for number in signals:
        _log.warning("%s: %s again: ending under its users", delivery.name, signal.Signals(number).name)
        watch.hurry()
        pyfuse3.terminate()
