"""What a user sees while blobs go over the line: a line for each that is redrawn, on a terminal; elsewhere a line for
each change of state, in docker's words; or nothing."""

from __future__ import annotations

import os
import threading
import time
from typing import TextIO

from runtime.images.reference import Reference

_INTERVAL = 0.1  # seconds between two redrawings at least
_BAR = 50


class Progress:
    """Says nothing, as for --quiet. Thread-safe, as all of them are."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def state(self, item: str, state: str) -> None:
        """What has become of a blob: "Download complete", "Pushed" … A new item gets a line."""

    def moving(self, item: str, state: str, done: int, total: int) -> None:
        """So many bytes are through; called often."""

    def close(self) -> None:
        """Nothing is drawn after this."""


class Lines(Progress):
    """For pipes and files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}  # guarded by _lock

    def say(self, text: str) -> None:
        with self._lock:
            print(text, file=self._stream, flush=True)

    def state(self, item: str, state: str) -> None:
        with self._lock:
            if self._states.get(item) != state:  # a second try of a mirror's begins anew
                self._states[item] = state
                print(f"{item}: {state}", file=self._stream, flush=True)


class Screen(Progress):
    """For a terminal: the items' lines are the last on it, and moved down by what is said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._items: dict[str, str] = {}  # guarded by _lock
        self._drawn = 0  # lines on the screen that are ours; guarded by _lock
        self._last = 0.0  # when, monotonic; guarded by _lock

    def say(self, text: str) -> None:
        with self._lock:
            self._draw_locked(f"{text}\n")

    def state(self, item: str, state: str) -> None:
        with self._lock:
            self._items[item] = state
            self._draw_locked()

    def moving(self, item: str, state: str, done: int, total: int) -> None:
        with self._lock:
            begins = not self._items.get(item, "").startswith(state)
            self._items[item] = f"{state}  {_bar(done, total)}"
            if begins or time.monotonic() - self._last >= _INTERVAL:
                self._draw_locked()

    def close(self) -> None:
        with self._lock:
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


def progress(stream: TextIO, *, quiet: bool = False) -> Progress:
    """What fits the stream."""
    if quiet:
        return Progress()
    return Screen(stream) if stream.isatty() else Lines(stream)


def full(reference: Reference) -> str:
    """docker's whole form: "docker.io/library/busybox:latest"."""
    rest = f":{reference.tag}" * bool(reference.tag) + f"@{reference.digest}" * bool(reference.digest)
    return f"{reference.registry}/{reference.repository}{rest}"


def _terminal(stream: TextIO) -> tuple[int, int]:
    """Columns and rows; a usual size where the terminal has none, as a serial line."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except OSError:
        columns, rows = 0, 0
    return columns or 80, rows or 24


def short(digest: str) -> str:
    """What users see of a digest."""
    return digest.removeprefix("sha256:")[:12]


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
