"""The threads that read requests from /dev/fuse and write the answers: one leader, and followers.

    leader      reads a request, answers it in place, reads the next
    followers   sleep until the leader's request turns slow (union/waiting.py); then one becomes the leader, and the old
                leader a follower once it has answered

So quick requests are answered by one thread without a hand-over, and slow ones hold up nobody. How the leader waits for
the next request is told in `pause`. Each thread has a descriptor of its own (FUSE_DEV_IOC_CLONE); what is read from one
is answered on it.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence

from unionfs.fuse import abi, reply
from unionfs.fuse.request import Unintelligible
from unionfs.linux import fusedev
from unionfs.linux.processes import is_dying
from unionfs.transport.pause import Pause
from unionfs.transport.serving import start
from unionfs.union.errors import fail
from unionfs.union.waiting import Waiting

# As many requests can be in slow work, less the leader's; then nobody reads the next. They may wait for one disk, or
# for one copy-up, by the dozen.
_MOST_THREADS = 256
# Followers that are kept when a crowd has gone.
_MOST_IDLE = 8

# Beside a longest WRITE: its structure and header, and what the kernel wants to be sure of (FUSE_MIN_READ_BUFFER).
_MARGIN = 8192

# How often a wait that was interrupted looks whether its caller is being killed.
_GLANCE_SECONDS = 0.1

_log = logging.getLogger(__name__)

Answer = Callable[[memoryview], bytes | Sequence[bytes] | None]


class _Slow:
    """A request in slow work; `interrupted` is set by the thread that reads the INTERRUPT."""

    __slots__ = ("interrupted",)

    def __init__(self) -> None:
        self.interrupted = False


class _Thread(threading.local):
    """Of the calling thread: whether it leads, the message it answers, and that request once it is slow."""

    leads = False
    message = memoryview(bytes(abi.IN_HEADER.size))
    slow: _Slow | None = None


class Workers(Waiting):
    """Guarded by `_lock`: `_threads`, `_clones`, `_idle` (how many wait for `_baton`), `_slow`. The leader holds
    `_baton`."""

    def __init__(self, *, max_write: int, spin_us: int) -> None:
        """`spin_us` bounds the leader's asking before it sleeps, 0 for none."""
        self._fd = -1
        self._buffer_size = max_write + _MARGIN
        self.pause = Pause(spin_us)
        self._me = _Thread()
        self._lock = threading.Lock()
        self._baton = threading.Lock()
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._slow: dict[int, _Slow] = {}
        self._ending = False
        self._answer: Answer | None = None
        self._let_go: Callable[[], None] | None = None
        self._clones: set[int] = set()
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable when the connection has ended

    def start(self, fd: int, answer: Answer, let_go: Callable[[], None]) -> None:
        """Serve the connection `fd`, which must stay open until `join` has returned. `let_go` is called by the thread
        that finds it ended, if no other is at work. Raises OSError: EAGAIN, there is not one thread to be had."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._answer = answer
        self._let_go = let_go
        self._more()

    def stop(self) -> None:
        """Read no more requests; those that are being answered still are."""
        self._ending = True
        os.eventfd_write(self._stop_fd, 1)

    def abandon(self) -> None:
        """Let go of the connection under its users, whatever slow work is in flight: with its last descriptor the
        kernel aborts it. The numbers stay, on /dev/null, for the threads that still have an answer to write."""
        self.stop()
        with self._lock:
            for fd in (self._fd, *self._clones):
                os.dup2(self._null, fd, inheritable=False)

    def join(self, seconds: float) -> bool:
        """Wait until every thread has ended, after `stop` or the end of the connection; False if one still has not."""
        until = time.monotonic() + seconds
        while self._threads:
            with self._lock:
                threads = list(self._threads)
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
                if thread.is_alive():
                    return False
            with self._lock:
                self._threads.difference_update(threads)
        return True

    def close(self) -> None:
        self.pause.close()
        for fd in (self._stop_fd, self.ended_fd, self._null):
            os.close(fd)

    # What the union tells.

    def begins(self) -> None:
        me = self._me
        if not me.leads:
            return
        me.leads = False
        self.pause.rest()
        with self._lock:
            self._slow[_unique(me.message)] = me.slow = _Slow()
            lonely = not self._idle and len(self._threads) < _MOST_THREADS
        self._baton.release()
        if lonely:
            try:
                self._more()
            except OSError:
                # This one reads again when it has answered.
                _log.warning("no further thread can be started; others wait for the slow work of this one")

    def check(self) -> None:
        """INTERRUPT comes for every signal, and no program expects EINTR of chmod(2) or rename(2), nor would one with a
        timer ever see a copy-up done: only who is being killed, or has lost the connection, gives up."""
        me = self._me
        if self._ending or (me.slow is not None and me.slow.interrupted and _caller_is_dying(me.message)):
            fail(errno.EINTR)

    def patience(self) -> float | None:
        """For a SIGKILL after another signal there is no second INTERRUPT."""
        slow = self._me.slow
        return _GLANCE_SECONDS if slow is not None and slow.interrupted else None

    def interrupt(self, unique: int) -> bool:
        """Let `check` look at the caller of the request `unique`; False if that is not among the slow ones."""
        with self._lock:
            slow = self._slow.get(unique)
        if slow is None:
            return False
        slow.interrupted = True
        return True

    # The threads.

    def _more(self) -> None:
        # The end of the process does not wait for it.
        thread = threading.Thread(target=self._work, name="fuse", daemon=True)
        with self._lock:  # one that has not begun cannot be joined
            start(thread)
            self._threads.add(thread)

    def _work(self) -> None:
        fd = -1
        try:
            fd = _own_descriptor(self._fd)
            if fd >= 0:
                with self._lock:
                    self._clones.add(fd)
            self._serve(fd if fd >= 0 else self._fd)
        except Exception:
            _log.critical("a thread that serves requests has failed; the session ends", exc_info=True)
            self._end()
        finally:
            if self._me.leads:
                self._me.leads = False
                self._baton.release()
            if fd >= 0:
                with self._lock:
                    self._clones.discard(fd)
                os.close(fd)

    def _serve(self, fd: int) -> None:
        me = self._me
        buffer = bytearray(self._buffer_size)
        view, buffers = memoryview(buffer), (buffer,)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        answer = self._answer
        assert answer is not None
        while True:
            if not me.leads:
                with self._lock:
                    if self._idle == _MOST_IDLE:
                        self._threads.discard(threading.current_thread())
                        return
                    self._idle += 1
                self._baton.acquire()
                me.leads = True
                with self._lock:
                    self._idle -= 1
            count = self._read(fd, buffers, poll)
            if count < 0:
                return
            me.message = message = view[:count]
            try:
                said = answer(message)
            except Unintelligible as error:
                _log.critical("%s; the session ends", error)
                self._end()
                return
            if said is not None:
                self._write(fd, said, message)
            if me.slow is not None:
                with self._lock:
                    del self._slow[_unique(message)]
                me.slow = None

    def _read(self, fd: int, buffers: tuple[bytearray], poll: select.poll) -> int:
        """The length of the next message; -1 when there will be none."""
        none_yet = self.pause.takes_turns
        while not self._ending:
            try:
                if not none_yet:
                    return os.readv(fd, buffers) or -1  # 0: abandoned
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # the request was taken back between the poll and the read
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    if not self._slow and self._let_go is not None:
                        self._let_go()
                    self._end()  # unmounted, or aborted
                    return -1
                raise
            none_yet = False
            count = self.pause.until_request(fd, buffers, poll, self._me.message)
            if count:
                return count
        return -1

    def _write(self, fd: int, said: bytes | Sequence[bytes], message: memoryview) -> None:
        try:
            if isinstance(said, bytes):
                os.write(fd, said)
            else:
                os.writev(fd, said)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED):
                return  # nobody waits for it any more
            # Refused as it stands, which leaves the caller waiting.
            _log.error("the answer to request %d is refused: %s", _unique(message), error)
            try:
                os.write(fd, reply.error(_unique(message), errno.EIO))
            except OSError:
                pass  # the kernel did end the request

    def _end(self) -> None:
        """The connection has ended, or is to: nobody need sleep on."""
        self.stop()
        os.eventfd_write(self.ended_fd, 1)


def _unique(message: memoryview) -> int:
    unique: int = abi.IN_HEADER.unpack_from(message)[2]
    return unique


def _caller_is_dying(message: memoryview) -> bool:
    pid: int = abi.IN_HEADER.unpack_from(message)[6]
    return pid != 0 and is_dying(pid)  # 0: in another pid namespace


def _own_descriptor(fd: int) -> int:
    """A clone, or -1: /dev/fuse cannot be opened (by a user, in a container), or there is no descriptor to be had. Then
    threads share the one there is: an answer must go where its request came from."""
    try:
        clone = fusedev.clone(fd)
    except OSError:
        return -1
    os.set_blocking(clone, False)
    return clone
