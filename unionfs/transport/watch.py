"""Ending a session whose main thread cannot: it serves requests itself and waits for a branch's file system, or for a
thread that does. For pyfuse3; the direct transport's main thread waits for nobody.

A thread looks on:

    the connection has ended            (POLLERR)    the session has ENDED_SECONDS to end (`serving`)
    told to end under its users         (`hurry`)    HURRIED_SECONDS
    SIGTERM or SIGINT are pending, and nobody has taken them for _LOOKS looks: the main thread does not come back. A
    second one would not be seen, since signals do not queue (signal(7)).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable

from unionfs.transport import serving

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_LOOK_SECONDS = 2.5
_LOOKS = 4

_CLOSE, _HURRY = b"c", b"h"


class Watch:
    def __init__(self, fd: int, leave: Callable[[], object]) -> None:
        """`fd` is the connection, `leave` ends the process. Raises OSError: EAGAIN, no thread to be had."""
        self._fd = fd
        self._leave = leave
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        try:
            serving.start(self._thread)
        except BaseException:
            os.close(self._reader)
            os.close(self._writer)
            raise

    def hurry(self) -> None:
        os.write(self._writer, _HURRY)

    def close(self) -> None:
        """The session has ended by itself."""
        os.write(self._writer, _CLOSE)
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # so that sigpending(2) tells of them
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(self._fd, 0)
        pending = 0
        while True:
            found = {fd for fd, _ in poll.poll(_LOOK_SECONDS * 1000)}
            if self._reader in found:
                if os.read(self._reader, 1) == _CLOSE:
                    return
                break
            if self._fd in found:
                break
            pending = pending + 1 if _SIGNALS & signal.sigpending() else 0
            if pending == _LOOKS:
                break
        patience = 0.0
        if self._reader in found:
            patience = serving.HURRIED_SECONDS
        elif self._fd in found:
            patience = serving.ENDED_SECONDS
        poll.unregister(self._fd)
        while poll.poll(patience * 1000):
            if os.read(self._reader, 1) == _CLOSE:
                return
            patience = serving.HURRIED_SECONDS
        self._leave()
