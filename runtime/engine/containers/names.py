"""Names and ids of containers: what is allowed, and one made up where none is given."""

from __future__ import annotations

import os
import re
import signal

from runtime.errors import ConfigError, InvalidValue

SHORT_ID = 12

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_HOST = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?)*")

_MOODS = (
    "able", "airy", "brisk", "calm", "candid", "clear", "deft", "early", "fair", "fleet", "frank", "glad", "handy",
    "idle", "keen", "light", "lucid", "merry", "neat", "patient", "plain", "quick", "quiet", "ready", "sound",
    "spry", "steady", "sunny", "sure", "terse", "tidy", "witty",
)  # fmt: skip
_BIRDS = (
    "auk", "bunting", "crake", "crane", "dipper", "dunlin", "egret", "eider", "finch", "godwit", "grebe", "gull",
    "heron", "ibis", "jay", "kestrel", "kite", "knot", "lark", "linnet", "merlin", "osprey", "ouzel", "petrel",
    "pipit", "plover", "rail", "raven", "shrike", "siskin", "snipe", "stork", "swift", "teal", "tern", "wren",
)  # fmt: skip


def new_id() -> str:
    """64 hex digits. Not all of the first 12 are decimal digits: those are the default host name, and programs
    take a host name of digits for an address (docker makes the same condition, moby pkg/stringid)."""
    while True:
        candidate = os.urandom(32).hex()
        if not candidate[:SHORT_ID].isdigit():
            return candidate


def new_name() -> str:
    mood, bird = os.urandom(2)
    return f"{_MOODS[mood % len(_MOODS)]}_{_BIRDS[bird % len(_BIRDS)]}"


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidValue(
            f"invalid container name {name!r}: at least two of [a-zA-Z0-9_.-] are allowed, the first a letter or digit"
        )
    return name


def signal_number(name: str) -> int:
    """The number of TERM, SIGTERM, 15 or RTMIN+3. ConfigError for what is not a signal here."""
    text = name.upper().removeprefix("SIG")
    base, plus, offset = text.partition("+")
    try:
        number = int(text) if text.isdecimal() else int(signal.Signals[f"SIG{base}"]) + (int(offset) if plus else 0)
    except (KeyError, ValueError):
        number = 0
    if number not in signal.valid_signals():
        raise ConfigError(f"the image's stop signal {name!r} is none of this machine's")
    return number


def signal_name(number: int) -> str:
    """SIGTERM of 15; of a real-time signal SIGRTMIN and what is added to it."""
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    try:
        return signal.Signals(number).name
    except ValueError:  # 32 and 33 are the C library's own
        return str(number)


def check_hostname(name: str) -> str:
    """RFC 1123 with underscores; the length is the kernel's __NEW_UTS_LEN."""
    if len(name) > 64 or not _HOST.fullmatch(name):
        raise InvalidValue(f"invalid hostname: {name!r}: letters, digits, '-' and '.' up to 64 characters are allowed")
    return name
