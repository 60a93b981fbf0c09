"""Sizes, times and tables for people, as docker shows them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

_SPANS = (
    ("year", 365 * 86400, 2), ("month", 30 * 86400, 2), ("week", 7 * 86400, 2), ("day", 86400, 2),
    ("hour", 3600, 2), ("minute", 60, 1), ("second", 1, 1),
)  # fmt: skip


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def size(count: int) -> str:
    """Bytes in powers of 1000 with three digits: 1.23MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def span(seconds: float) -> str:
    """A duration in its largest sensible unit: from 2 hours, 2 days … on in that unit, below in the next smaller."""
    whole = int(max(seconds, 0))
    if whole < 1:
        return "Less than a second"
    for name, length, least in _SPANS:
        count = whole // length
        if count >= least:
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{whole} seconds"


def ago(moment: float) -> str:
    return f"{span(time.time() - moment)} ago"


def printable(text: str) -> str:
    """A table has one line a row, whatever an image or a command line contains."""
    return "".join(character if character.isprintable() else "?" for character in text)


def path(name: str) -> str:
    """A path on one line: as it is, or, if it has characters that are not to be seen, quoted as a string of C. A path
    begins with a slash, so the two cannot be taken for each other."""
    return name if name.isprintable() else '"' + "".join(map(_quoted, name)) + '"'


def _quoted(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns three spaces apart, as wide as their widest cell."""
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "".join(
        "   ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )
