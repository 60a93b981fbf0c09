"""Other tries of what is safe to do again: later and later, with jitter, and not for ever.

Tried again are a broken or stalled connection, and the statuses that call themselves passing (502, 503, 504:
distribution-spec, "Errors"; 429 when the registry says how long to wait). What will not change by itself is not: no
such host, a refused connection, a certificate, a 4xx, a used-up rate limit.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from runtime.errors import RegistryError
from runtime.registry.failures import Answered, Unreachable

_PASSING = (502, 503, 504)
_Result = TypeVar("_Result")


class Patience(NamedTuple):
    """`attempts` in all without progress; the first pause is about `first` seconds, each next one twice as long up to
    `most`, which is also the longest Retry-After that is waited for. `sleep` pauses."""

    attempts: int = 5
    first: float = 0.5
    most: float = 30.0
    sleep: Callable[[float], object] = time.sleep


def retried(do: Callable[[], _Result], patience: Patience, progress: Callable[[], int] = lambda: 0) -> _Result:
    """What `do` gives, or the last attempt's RegistryError.

    `progress` counts what is done already: an attempt that moved it by a megabyte does not count as failed, one that
    moved it by less does, or a server that breaks off after each byte would keep us for ever.
    """
    failed = 0
    while True:
        before = progress()
        try:
            return do()
        except (Unreachable, Answered) as error:
            failed = 1 if progress() - before >= 1 << 20 else failed + 1
            pause = _pause(error, failed, patience)
            if pause is None or failed >= patience.attempts:
                raise
        patience.sleep(pause)


def _pause(error: RegistryError, failed: int, patience: Patience) -> float | None:
    """Seconds until the next attempt; None when there should be none."""
    backoff = min(patience.first * 2 ** (failed - 1), patience.most) * random.uniform(0.5, 1)
    if isinstance(error, Unreachable):
        return backoff if error.transient else None
    if isinstance(error, Answered) and error.retry_after is not None and error.status in (429, *_PASSING):
        return max(error.retry_after, backoff) if error.retry_after <= patience.most else None
    return backoff if isinstance(error, Answered) and error.status in _PASSING else None


def retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date (RFC 9110, 10.2.3); None when it says nothing."""
    if not header:
        return None
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
