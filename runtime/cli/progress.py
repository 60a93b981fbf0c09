"""How events are shown: a line for each part of the work that is redrawn, on a terminal; elsewhere a line for each
change of state, in docker's words; or nothing."""

from __future__ import annotations

import os
import threading
import time
from typing import TextIO

from runtime.events import Event, Message, Notice, Progress

_INTERVAL = 0.1  # seconds between two redrawings at least
_BAR = 50


class Silent:
    """For --quiet. A listener, as all of them are, and so for any thread; a context manager, after which nothing is
    drawn any more."""

    def __call__(self, event: Event) -> None:
        """Show it."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Draw what was not drawn yet."""


class Lines(Silent):
    """For pipes and files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}  # guarded by _lock

    def __call__(self, event: Event) -> None:
        with self._lock:
            if not isinstance(event, Progress):
                print(event.text, file=self._stream, flush=True)
            elif not event.total and self._states.get(event.id) != event.status:  # a mirror's second try begins anew
                self._states[event.id] = event.status
                print(f"{event.id}: {event.status}", file=self._stream, flush=True)


class Screen(Silent):
    """For a terminal: the lines of what is in progress are the last on it, and moved down by notices."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._items: dict[str, str] = {}  # guarded by _lock
        self._drawn = 0  # lines on the screen that are ours; guarded by _lock
        self._last = 0.0  # when, monotonic; guarded by _lock

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case Progress(_, _, _, 0):
                    self._items[event.id] = event.status
                    self._draw_locked()
                case Progress():
                    begins = not self._items.get(event.id, "").startswith(event.status)
                    self._items[event.id] = f"{event.status}  {_bar(event.current, event.total)}"
                    if begins or time.monotonic() - self._last >= _INTERVAL:
                        self._draw_locked()
                case Message():
                    self._settle_locked()
                    self._draw_locked(f"{event.text}\n")
                case Notice():
                    self._draw_locked(f"{event.text}\n")

    def close(self) -> None:
        with self._lock:
            self._settle_locked()

    def _settle_locked(self) -> None:
        """Leave the lines as they are in the end, and draw below them from now on."""
        if self._items:
            self._draw_locked()
        self._items.clear()
        self._drawn = 0

    def _draw_locked(self, above: str = "") -> None:
        columns, rows = _terminal(self._stream)
        # As many as there is room for, the last: what has scrolled away cannot be reached any more.
        lines = [f"{item}: {state}"[: columns - 1] for item, state in self._items.items()][-(rows - 1) :]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._stream.write(up + "\x1b[J" + above + "".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._drawn, self._last = len(lines), time.monotonic()


def progress(stream: TextIO | None, *, quiet: bool = False) -> Silent:
    """What fits the stream; it is None where the process was started without one."""
    if quiet or stream is None:
        return Silent()
    return Screen(stream) if stream.isatty() else Lines(stream)


def _terminal(stream: TextIO) -> tuple[int, int]:
    """Columns and rows; a usual size where the terminal has none, as a serial line."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except OSError:
        columns, rows = 0, 0
    return columns or 80, rows or 24


def _bar(done: int, total: int) -> str:
    filled = _BAR if total <= 0 else min(_BAR * done // total, _BAR)
    head = ">" if filled < _BAR else ""
    return f"[{'=' * filled}{head}{' ' * (_BAR - filled - len(head))}]  {_size(done)}/{_size(total)}"


def _size(count: int) -> str:
    """Bytes in powers of 1000 with four digits, as docker writes them here."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.4g}{unit}"
        value /= 1000
    return f"{value:.4g}TB"
