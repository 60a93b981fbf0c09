"""Leaving when we are told to, even from where no signal is heard.

Whoever reads from a union whose server is stopped waits in the kernel, and only what kills ends that wait
(fs/fuse/dev.c, request_wait_answer). A handler of ours, which would undo what was begun, runs when the main thread
comes back from there. So a second thread takes the signals: it has the main one hear of them, and ends the process
where that does not.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from runtime.errors import RuntimeFault, StateError

_GRACE = 5.0  # seconds for the main thread to undo what it has begun
_FATAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NUDGE = signal.SIGURG  # has the main thread come back from a call that can be interrupted

Found = TypeVar("Found")


@contextmanager
def certainly() -> Iterator[None]:
    """Within the block the process ends within _GRACE seconds of a signal that is to end it, whatever it waits for.

    The block must not start processes that a terminal's signals are for. Does nothing but in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(sender, False)
    over = threading.Event()
    wakeup = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    nudged = signal.signal(_NUDGE, lambda *_: None)
    thread = threading.Thread(target=_watch, args=(receiver, threading.get_ident(), over), daemon=True)
    thread.start()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FATAL)  # after its start: it takes them in our place
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        os.close(sender)
        thread.join()
        os.close(receiver)
        signal.signal(_NUDGE, nudged)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _watch(receiver: int, main: int, over: threading.Event) -> None:
    while numbers := os.read(receiver, 64):
        for number in filter(set(_FATAL).__contains__, numbers):
            if signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            signal.pthread_kill(main, _NUDGE)
            if not over.wait(_GRACE):
                os._exit(128 + number)


def within(patience: float, what: str, ask: Callable[[], Found]) -> Found:
    """What `ask` gives. StateError, saying that `what` does not answer, when it takes more than `patience` seconds;
    then it waits on, in a thread that ends with the process."""
    answers: list[Found | OSError | RuntimeFault] = []

    def work() -> None:
        try:
            answers.append(ask())
        except (OSError, RuntimeFault) as error:
            answers.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience)
    if not answers:
        raise StateError(f"{what} does not answer")
    if isinstance(answers[0], OSError | RuntimeFault):
        raise answers[0]
    return answers[0]
