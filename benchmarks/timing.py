"""How time is taken: the mean over a batch of operations, each on its own file, is one sample of one round.

Rounds are interleaved: every subject does round 1, then every subject round 2, starting one further each time. What
disturbs the machine for a while then disturbs all subjects alike, and the ratios hold better than the seconds do.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Sample(NamedTuple):
    """What one subject took for one thing in one round. Less is better in every unit, so that all ratios read alike."""

    question: str  # "copyup", "lookup"
    measure: str  # "first write, 4 KiB"
    subject: str  # "overlay2"
    value: float
    unit: str = "s"  # seconds per operation; or "s/MiB"; "B", bytes of memory; "copies" of a file's data


def per_operation(operation: Callable[[T], object], items: Sequence[T]) -> float:
    """Seconds that one `operation(item)` takes, as the mean over `items`. The cyclic collector waits meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for item in items:
            operation(item)
        return (time.perf_counter() - start) / len(items)
    finally:
        if collecting:
            gc.enable()


def seconds(operation: Callable[[], object]) -> float:
    """Seconds that `operation()` takes, once."""
    return per_operation(lambda do: do(), [operation])


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The same items, beginning with number `by` (counted around)."""
    by %= len(items) or 1
    return [*items[by:], *items[:by]]
