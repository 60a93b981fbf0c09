"""A session that speaks to /dev/fuse itself: mount, answer until the last user is gone, end. Standard library only.

    serve()       main thread   mounting, the first stat, signals, the control socket, unmounting
    workers.py    threads       INIT and every other request

SIGTERM and SIGINT unmount. If the mount is in use it is detached: no new user finds it, those it has go on until they
are done, so that nothing they wrote is lost; a second signal ends the session under them, as the first does where the
mount was handed over and is not to be found.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

from unionfs.fuse import abi, init, reply, table, wiretext
from unionfs.fuse.init import Agreement, Refused, Wish
from unionfs.fuse.request import Malformed, parse
from unionfs.linux import consts, fusedev
from unionfs.linux.processes import WithoutCapability
from unionfs.serve.lending import LENDS, Lends
from unionfs.serve.passthrough import Passthrough
from unionfs.serve.wire import WireOperations
from unionfs.transport import control, info, remount, serving
from unionfs.transport.delivery import Delivery
from unionfs.transport.workers import Answer, Workers
from unionfs.union import synchronous
from unionfs.union.branch import Branch
from unionfs.union.fs import UnionFs
from unionfs.union.numbers import Xino

_MAX_WRITE = 1 << 20
WISH = Wish(
    flags=(
        abi.FUSE_ASYNC_READ | abi.FUSE_ATOMIC_O_TRUNC | abi.FUSE_EXPORT_SUPPORT | abi.FUSE_BIG_WRITES
        | abi.FUSE_DONT_MASK | abi.FUSE_HAS_IOCTL_DIR | abi.FUSE_DO_READDIRPLUS | abi.FUSE_READDIRPLUS_AUTO
        | abi.FUSE_ASYNC_DIO | abi.FUSE_PARALLEL_DIROPS | abi.FUSE_POSIX_ACL | abi.FUSE_MAX_PAGES
        | abi.FUSE_CACHE_SYMLINKS | abi.FUSE_NO_OPENDIR_SUPPORT | abi.FUSE_HANDLE_KILLPRIV_V2 | abi.FUSE_PASSTHROUGH
    ),
    max_write=_MAX_WRITE,
    max_background=64,
    congestion_threshold=48,
    max_readahead=_MAX_WRITE,
    max_stack_depth=1,
)  # fmt: skip

_WITHOUT_CAPABILITY = "it takes CAP_SYS_ADMIN"

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


def serve(
    branches: Sequence[Branch],
    delivery: Delivery,
    *,
    flags: Collection[str],
    allow_other: bool,
    ready: Callable[[], None],
    volatile: bool = False,
    xino: Xino = "auto",
    passthrough: str = "programs",
    spin_us: int = 200,
    reason: str = "",
) -> None:
    """Mount the union of `branches` (top first; closed at the end) and serve it; return when it is unmounted.

    `ready` is called once, from the main thread, when the mount answers and is delivered; `passthrough` and
    `spin_us` are the mount options; `reason` says why this transport was chosen. Raises OSError when the union or the
    mount is refused, and fuse.init.Refused, with nothing left mounted or open, when the kernel is too old.
    """
    serving.prepare_process()
    started = time.time()
    with contextlib.ExitStack() as at_end:
        workers = Workers(max_write=_MAX_WRITE, spin_us=spin_us)
        at_end.callback(workers.close)
        unmounter = _needing_a_thread(serving.Unmounter, workers)
        at_end.callback(unmounter.close)
        fs = synchronous.kind(flags, UnionFs)(branches, volatile=volatile, xino=xino, waiting=workers)
        at_end.callback(fs.close)
        # Before the mount: a signal between the two would leave it without a server.
        signals = at_end.enter_context(_signals())
        at_end.callback(delivery.close)
        fd = delivery.mount(flags, allow_other, dont_mask=bool(WISH.flags & abi.FUSE_DONT_MASK))
        at_end.callback(os.close, fd)
        at_end.callback(lambda: unmounter.detach(delivery.identity))
        connection = _Connection(fs, workers, fd, lends=LENDS[passthrough], syncs="sync" in flags)
        if any(branch.on_fuse for branch in branches):
            connection.cannot_lend = "a branch is itself on FUSE"

        def facts() -> info.Facts:
            agreed = connection.operations.agreed
            nodes, open_files = fs.counts()
            return {
                "transport": {"name": "direct", "reason": reason},
                "protocol": f"7.{agreed.minor}" if agreed else None,
                "flags": init.names(agreed.flags) if agreed else [],
                "missing": list(agreed.missing) if agreed else [],
                "passthrough": connection.passthrough_facts(),
                "lends": passthrough,
                "volatile": volatile,
                "xino": xino,
                "spin_us": spin_us,
                "branches": info.branch_facts(branches),
                "nodes": nodes,
                "open_files": open_files,
                "requests": {table.name(code): n for code, n in enumerate(connection.operations.counts) if n},
                "started": started,
                "pid": os.getpid(),
            }

        answers = {b"info": lambda _: facts(), **remount.orders(branches)}
        answer: Answer = connection.operations.answer
        if _log.isEnabledFor(logging.DEBUG):
            answer = _told(answer)
        _needing_a_thread(lambda: workers.start(fd, answer, fs.close), workers)
        patience = serving.ENDED_SECONDS
        try:
            if not _attend(connection, delivery, unmounter, signals, ready, answers):
                patience = serving.HURRIED_SECONDS
        finally:
            workers.stop()
            if not workers.join(patience):
                serving.leave(delivery.identity, unmounter)
            fs.close()  # before all else; by whoever came first
        if connection.refused is not None:
            raise connection.refused


def _needing_a_thread(begin: Callable[[], _T], workers: Workers) -> _T:
    """Where only so many processes are allowed, threads go before the companion."""
    try:
        return begin()
    except OSError as error:
        if error.errno != errno.EAGAIN or not workers.pause.do_without_companion():
            raise
    return begin()


class _Connection:
    """What the kernel and we agreed on, and the files lent to it. `refused` and `agreed` are set by the thread that
    answers INIT; `cannot_lend` (why a file was refused) and `has_lent` by those that open files; the rest is
    immutable."""

    def __init__(self, fs: UnionFs, workers: Workers, fd: int, *, lends: Lends, syncs: bool) -> None:
        self.fs = fs
        self.workers = workers
        self.syncs = syncs
        self.lends = lends
        self.refused: Refused | None = None
        self.cannot_lend = ""
        self.has_lent = False
        self.fd = fd
        self._without_fsetid = WithoutCapability(consts.CAP_FSETID)
        self.operations = WireOperations(
            fs, init=self._negotiate, passthrough=self._passthrough, interrupt=self._interrupt,
            forget_attributes=self._forget_attributes,
        )  # fmt: skip

    def _negotiate(self, fields: tuple[Any, ...]) -> Agreement:
        try:
            return init.negotiate(fields, WISH)
        except Refused as refused:
            self.refused = refused
            self.workers.stop()
            raise OSError(errno.EPROTO, str(refused)) from None

    def _passthrough(self, agreed: Agreement) -> Passthrough | None:
        if not agreed.passthrough:
            self.cannot_lend = "the kernel does not offer it (it takes Linux 6.9)"
            return None
        if self.syncs:
            # IS_SYNC() is asked of the lent file's inode, which is not mounted so (generic_write_sync(), fs.h).
            self.cannot_lend = "what is written to a lent file is not synced (-o sync)"
            return None
        return Passthrough(self.fs, self, lends=self.lends, forget_attributes=self._forget_attributes)

    def lend(self, fd: int, *, writable: bool) -> int:
        try:
            if writable:
                with self._without_fsetid:
                    backing_id = fusedev.backing_open(self.fd, fd)
            else:
                backing_id = fusedev.backing_open(self.fd, fd)
        except OSError as error:
            self.cannot_lend = {
                errno.EPERM: _WITHOUT_CAPABILITY,
                errno.ELOOP: "a branch is itself on a stacked file system",
            }.get(error.errno or 0, f"the kernel refuses a file ({error.strerror})")
            raise
        self.has_lent = True
        return backing_id

    def take_back(self, backing_id: int) -> None:
        fusedev.backing_close(self.fd, backing_id)

    def give(self, number: int, content: bytes) -> None:
        with contextlib.suppress(OSError):  # ENOMEM; ENOENT: the kernel does not know the number any more
            os.writev(self.fd, (reply.notify_store(number, 0, len(content)), content))

    def _forget_attributes(self, number: int) -> None:
        with contextlib.suppress(OSError):  # ENOENT: the kernel does not know the number any more
            os.write(self.fd, reply.notify_inval_inode(number, -1, 0))

    def _interrupt(self, unique: int) -> bool:
        if not self.workers.interrupt(unique):
            return False
        self.fs.wake()
        return True

    def passthrough_facts(self) -> info.PassthroughFacts:
        """Before the first file is opened, too: what may not be lent at all is refused before the file is looked at
        (fs/fuse/backing.c, fuse_backing_open)."""
        if self.operations.passthrough is not None and not self.cannot_lend:
            try:
                fusedev.backing_open(self.fd, -1)
            except OSError as error:
                if error.errno == errno.EPERM:
                    self.cannot_lend = _WITHOUT_CAPABILITY
        enabled = self.operations.passthrough is not None and (self.has_lent or not self.cannot_lend)
        return {"enabled": enabled, "reason": self.cannot_lend}


def _told(answer: Answer) -> Answer:
    """The same with every message in the log (`unionfs mount --debug`)."""

    def telling(message: memoryview) -> bytes | Sequence[bytes] | None:
        _log.debug("%s", wiretext.rx(message))
        said = answer(message)
        if said is not None:
            whole = said if isinstance(said, bytes) else b"".join(said)
            try:
                request = parse(message)
            except Malformed:
                request = None
            _log.debug("%s", wiretext.tx(whole, request))
        return said

    return telling


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which SIGTERM and SIGINT are read, a byte each."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, lambda number, frame: None) for number in numbers]
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _attend(
    connection: _Connection,
    delivery: Delivery,
    unmounter: serving.Unmounter,
    signals: int,
    ready: Callable[[], None],
    answers: control.Answers,
) -> bool:
    """The main thread, until the connection has ended; False if that was under its users."""
    try:
        delivery.deliver()
    except OSError:
        if connection.refused is not None:
            return True
        raise
    with _announced(delivery.identity) as announcement:
        _log.info("%s: mounted, process %d", delivery.name, os.getpid())
        ready()
        poll = select.poll()
        poll.register(connection.workers.ended_fd, select.POLLIN)
        poll.register(connection.fd, 0)  # POLLERR: it has ended, though every thread may be elsewhere
        poll.register(signals, select.POLLIN)
        listener = -1 if announcement is None else announcement.socket.fileno()
        pause_ms: float | None = None
        unmounting = False
        while True:
            if listener >= 0 and pause_ms is None:
                poll.register(listener, select.POLLIN)
            found = {fd for fd, _ in poll.poll(pause_ms)}
            pause_ms = None
            if connection.workers.ended_fd in found or connection.fd in found:
                return True
            for number in os.read(signals, 16) if signals in found else b"":
                name = signal.Signals(number).name
                if unmounting or (delivery.is_detached and not unmounter.places(delivery.identity)):
                    _log.warning("%s: %s%s: ending under its users", delivery.name, name, " again" * unmounting)
                    connection.workers.abandon()
                    return False
                _log.info("%s: %s", delivery.name, name)
                unmounter.unmount(delivery.identity)
                unmounting = True
            if announcement is not None and listener in found and not _serve_client(announcement, answers):
                poll.unregister(listener)
                pause_ms = control.PAUSE_SECONDS * 1000


def _serve_client(announcement: control.Announcement, answers: control.Answers) -> bool:
    """False if there is nothing to do so by now."""
    try:
        with announcement.client() as client:
            if client is not None:
                control.serve_one(client, answers)
    except OSError as error:
        _log.warning("who asks for this mount has to wait: %s", error.strerror)
        return False
    return True


@contextlib.contextmanager
def _announced(identity: str) -> Iterator[control.Announcement | None]:
    try:
        announcement = control.Announcement(identity)
    except OSError as error:
        _log.warning("'unionfs umount' will not wait for this server: %s", error)
        yield None
        return
    try:
        yield announcement
    finally:
        announcement.withdraw()
