"""Sizes as users write them for options: `10G`, `512m`, `64k`, `4096`; powers of 1024."""

from __future__ import annotations

import re

from drivers.errors import Unavailable

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([bkmgtp])(?:i?b)?)?", re.IGNORECASE)
_POWER = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_MOST = 1 << 62


def parse_size(text: str, option: str) -> int:
    """The bytes that `text`, the value of `option`, means. Raises Unavailable with a sentence."""
    match = _SIZE.fullmatch(text.strip())
    size = float(match[1]) * 1024 ** _POWER[(match[2] or "b").lower()] if match else -1.0
    if not 0 <= size <= _MOST:
        raise Unavailable(f"{option}={text} is not a size: write a number and a unit, as in {option}=10G")
    return int(size)


def show_size(size: int) -> str:
    """A size in the largest unit of which it is a whole number: "10G", "1536M"."""
    for unit, power in reversed(_POWER.items()):
        if power and size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit.upper()}"
    return str(size)
