"""The signals that are meant for a container and not for its client: held back, caught, and passed on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# All that a process can catch, except what is about this process alone and what stops and continues it: the shell's
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

    For the time between starting a container and being able to pass signals on to it.
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
