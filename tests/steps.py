"""The steps of a driver's method: something done before each line that it reaches in a new way."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import drivers.api

PACKAGE = os.path.dirname(drivers.api.__file__)


def before_each_step(
    function: Callable[[], object],
    act: Callable[[int], None],
    *,
    within: Sequence[str] = (PACKAGE,),
    each_way: bool = True,
) -> int:
    """Run `function`, and `act(n)` before its n-th step; how many steps there were.

    A step is a line of a file whose path begins with one of `within`, together with the lines that called it: the
    turns of a loop are one step, and one line that is reached in two ways is two. Without `each_way` it is one.
    """
    places = tuple(within)
    seen: set[tuple[tuple[str, int], ...]] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(places):
            return None
        if event == "line":
            step = _stack(frame) if each_way else ((frame.f_code.co_filename, frame.f_lineno),)
            if step not in seen:
                seen.add(step)
                act(len(seen))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return len(seen)


def _stack(frame: FrameType | None) -> tuple[tuple[str, int], ...]:
    lines = []
    while frame is not None and frame.f_code.co_name != "before_each_step":
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)
