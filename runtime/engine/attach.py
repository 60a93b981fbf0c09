"""The foreground of `run` and `exec`: a user's streams and signals for a container's.

Nothing here blocks but poll: a standard output that nobody reads, or a container that does not read its input, must not
keep a signal from being passed on.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

from runtime.engine import frames, terminal
from runtime.engine.start import Shim
from runtime.errors import ShimLost
from unionfs.linux import files

# All that a process can catch, but what is about this process alone, and what stops and continues it: the shell's
# job control acts on the client, as the container is not its job.
NOT_PASSED_ON = frozenset({
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGTSTP,
    signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL,
    signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS, signal.SIGPROF, signal.SIGVTALRM, signal.SIGXCPU, signal.SIGXFSZ,
})  # fmt: skip
PASSED_ON = frozenset(signal.valid_signals() - NOT_PASSED_ON)


@contextmanager
def held() -> Iterator[None]:
    """Signals that come within the block take effect after it, or in a block of `signals` within it.

    For the time between giving a container its start and being able to pass signals on to it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals() -> Iterator[int]:
    """A descriptor to read numbers of signals from, instead of their effect, within the block."""
    receiver, sender = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # What we were started to ignore, as by nohup, is not the container's either.
    caught = {number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN} | {signal.SIGWINCH}
    before = {number: signal.signal(number, lambda *_: None) for number in caught}
    wakeup = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    try:
        yield receiver
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        os.close(receiver)
        os.close(sender)


class Output:
    """One of our output streams: a queue that is written as far as the stream takes it without waiting."""

    # POSIX: a pipe that polls writable takes this many bytes at once.
    PIPE_BUF = 4096

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.queue = bytearray()
        self._closed = False
        self._own, self._step = fd, self.PIPE_BUF
        try:
            kind, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
            if stat.S_ISREG(kind) or flags & os.O_NONBLOCK:
                self._step = frames.CHUNK
            elif stat.S_ISFIFO(kind) and flags & os.O_ACCMODE != os.O_RDONLY:
                # Opened anew a pipe says itself how much it takes: whoever else has this one is not to be told EAGAIN.
                with suppress(OSError):
                    self._own, self._step = files.reopen(fd, os.O_WRONLY), frames.CHUNK
        except OSError:
            self._closed = True

    def add(self, data: bytes) -> None:
        """Queue it, and write what can be written without asking first."""
        if not self._closed:
            self.queue += data
            if self._step == frames.CHUNK:
                self.write()

    def write(self) -> None:
        try:
            with memoryview(self.queue)[: self._step] as piece:
                written = os.write(self._own, piece)
            del self.queue[:written]
        except BlockingIOError:
            pass
        except OSError:
            self._closed = True  # nobody reads it (`| head`), or its disk is full: the container goes on
            self.queue.clear()

    def drain(self) -> None:
        """Write all, waiting for the reader."""
        while self.queue:
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            poll.poll()
            self.write()

    def close(self) -> None:
        """Let go of what is not the caller's."""
        if self._own != self.fd:
            os.close(self._own)
            self._own = self.fd


class Ended(NamedTuple):
    code: int
    trouble: str  # what could not be given back, "" if nothing


def foreground(shim: Shim, *, stdin: bool, wants_terminal: bool) -> Ended:
    """Pass streams and signals until the container's end. Raises ShimLost.

    With `stdin` our standard input is passed on. A container with a terminal that reads from ours has ours in raw
    mode, and follows its size.
    """
    if not wants_terminal:
        return _attach(shim, stdin=stdin, terminal_fd=None)
    screen = 1 if os.isatty(1) else 0
    with terminal.raw(0) if stdin and os.isatty(0) else nullcontext():
        return _attach(shim, stdin=stdin, terminal_fd=screen if os.isatty(screen) else None)


def _attach(shim: Shim, *, stdin: bool, terminal_fd: int | None) -> Ended:
    out, err = Output(1), Output(2)
    reading, ended = stdin, None
    with signals() as caught:
        if terminal_fd is not None:
            _send(shim, frames.pack_window(*terminal.window(terminal_fd)))
        while True:
            while shim.received:
                frame = shim.received.pop(0)
                if frame.kind == frames.OUT:
                    out.add(frame.payload)
                elif frame.kind == frames.ERR:
                    err.add(frame.payload)
                elif frame.kind == frames.IN_OK:
                    reading = True
                elif frame.kind == frames.EXIT:
                    ended = Ended(**frame.json())
            if ended is not None:
                break
            poll = select.poll()
            poll.register(caught, select.POLLIN)
            for output in (out, err):
                if output.queue:
                    poll.register(output.fd, select.POLLOUT)
            # Without a wish POLLHUP is still told: the shim has sent its last, which is no more than a socket holds.
            poll.register(shim.sock, 0 if out.queue or err.queue else select.POLLIN)
            if reading:
                poll.register(0, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if caught in ready:
                _pass_on(os.read(caught, 512), shim, terminal_fd)
            for output in (out, err):
                if output.fd in ready:
                    output.write()
            if 0 in ready:
                reading = False
                if not _read_input(shim) and terminal_fd is not None:
                    # In raw mode there is no end of input but the terminal's own. The container goes on.
                    raise SystemExit(128 + signal.SIGHUP)
            if shim.sock.fileno() in ready and not shim.receive():
                raise ShimLost("the process that kept the container is gone, and the container with it")
    # From here on a signal is ours: ctrl-C leaves a reader that never reads on.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    for output in (out, err):
        output.drain()
        output.close()
    return ended


def _read_input(shim: Shim) -> bool:
    """Pass on what is there to be read; False at its end."""
    try:
        data = os.read(0, frames.CHUNK)
    except OSError:
        data = b""  # EIO: the terminal is gone, or is another job's
    _send(shim, frames.pack(frames.IN, data) if data else frames.pack(frames.IN_END))
    return bool(data)


def _pass_on(numbers: bytes, shim: Shim, terminal_fd: int | None) -> None:
    for number in numbers:
        if number != signal.SIGWINCH:
            if not _send(shim, frames.pack_number(frames.SIGNAL, number)):
                # The container has ended, and what keeps us is that nobody reads its output: the signal is ours.
                raise SystemExit(128 + number)
        elif terminal_fd is not None:
            _send(shim, frames.pack_window(*terminal.window(terminal_fd)))


def _send(shim: Shim, frame: bytes) -> bool:
    """False when the shim has ended; its last frames may still have to be read."""
    try:
        shim.sock.sendall(frame)
    except OSError:
        return False
    return True

