"""`runtime logs`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from typing import BinaryIO

from runtime.cli import tell, values
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.engine.containers.logs import Entry, Reader
from runtime.engine.frames import CHUNK

SUMMARY = "show what a container has written"
USAGE = "[OPTIONS] CONTAINER"
INTERSPERSED = True
OPTIONS = (
    Option("follow", "f", help="go on until the container ends"),
    Option("tail", "n", "NUMBER", "only that many lines from the end (default all)"),
)


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 1:
        raise UsageError("it requires exactly 1 argument, a container")
    tail = _tail(given.value("tail", "all"))

    from runtime.engine.watch import connect

    with settings.recovered() as installation:
        container = installation.containers.get(given.arguments[0])
    # The line comes before the first look at the log: nothing that is written in between goes unnoticed.
    watch = connect(container, follow=True) if given.flag("follow") else None
    with watch or nullcontext(), Reader(container.log, tell=lambda line: tell([line])) as log:
        show(log.entries() if tail is None else _last(log.entries(), tail))
        while watch is not None and watch.news():
            show(log.entries())
        show(log.entries())
    return 0


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    number = values.whole(text)
    if number is None:
        raise UsageError(f"invalid number of lines: {text!r}: write a whole number, or all")
    return number if number >= 0 else None


def _last(entries: Iterable[Entry], count: int) -> list[Entry]:
    """The entries of the last `count` lines; a line may be split over several."""
    lines: deque[list[Entry]] = deque(maxlen=count)
    whole = True
    for entry in entries:
        if whole:
            lines.append([])
        if lines:
            lines[-1].append(entry)
        whole = entry.data.endswith(b"\n")
    return [entry for line in lines for entry in line]


def show(entries: Iterable[Entry]) -> None:
    """Much at a time, and each stream's before what the other one has next. What comes in between, a signal to end for
    one, does not take along what was read already."""
    streams: dict[str, BinaryIO] = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for stream, run in groupby(entries, key=lambda entry: entry.stream):
        waiting = bytearray()
        try:
            for entry in run:
                waiting += entry.data
                if len(waiting) >= CHUNK:
                    piece, waiting = waiting, bytearray()  # not once more, if nobody reads it
                    _write(streams[stream], piece)
        finally:
            if waiting:
                _write(streams[stream], waiting)


def _write(stream: BinaryIO, data: bytearray) -> None:
    stream.write(data)
    stream.flush()
