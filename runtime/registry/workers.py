"""Several jobs at a time, each in a thread; the first failure ends them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

AT_ONCE = 3  # docker's max-concurrent-downloads
_PATIENCE = 5.0  # seconds for aborted threads to end: one that waits for another process's lock does not hear us


def together(jobs: Sequence[Callable[[], object]], abort: Callable[[], object], at_once: int = AT_ONCE) -> None:
    """Do all of them, or raise what first went wrong, in a job or (a signal) in this thread. `abort()` is called then:
    it makes jobs that wait for a server fail. None of them runs any more afterwards, but for those that wait for
    something else; these start nothing new."""
    left = list(reversed(jobs))  # guarded by guard
    failures: list[BaseException] = []  # guarded by guard
    guard = threading.Lock()

    def fail(error: BaseException) -> None:
        with guard:
            failures.append(error)
            left.clear()
            first = len(failures) == 1
        if first:
            abort()

    def work() -> None:
        while True:
            with guard:
                if not left:
                    return
                job = left.pop()
            try:
                job()
            except BaseException as error:
                fail(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(jobs)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not failures:
                thread.join(0.5)
    except BaseException as error:
        fail(error)
        raise
    finally:
        deadline = time.monotonic() + _PATIENCE
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0))
    if failures:
        raise failures[0]
