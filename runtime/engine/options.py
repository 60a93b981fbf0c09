"""What `run` can be asked, and how its values are written: sizes, CPUs, volumes, variables.

Values in, values out; nothing here looks at the machine but `cpus` at the number of its processors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from runtime.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([bkmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_UNIT = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
MINIMUM_MEMORY = 6 << 20
CPU_PERIOD = 100_000  # microseconds


class Volume(NamedTuple):
    """A directory or file of the host in the container; both paths absolute and normal."""

    source: str
    destination: str
    read_only: bool


class RunOptions(NamedTuple):
    """Everything `run` decides before there is a container. Defaults are docker's."""

    image: str
    command: tuple[str, ...] = ()
    name: str = ""
    hostname: str = ""
    env: tuple[str, ...] = ()  # NAME=VALUE, or NAME alone: not in the container even if the image has it
    workdir: str = ""
    user: str = ""
    volumes: tuple[Volume, ...] = ()
    memory: int = 0  # bytes; 0 for no limit
    cpu_quota: int = 0  # microseconds of CPU time a CPU_PERIOD; 0 for no limit
    pids: int = 0  # 0 for no limit
    network: str = "bridge"
    remove: bool = False
    terminal: bool = False
    stdin: bool = False
    quota: int = 0  # bytes that it may write; 0 for no limit
    pull: str = "missing"  # or "always", "never": when the image is got from its registry


def size(text: str) -> int:
    """Bytes written as docker's sizes: a number and b, k, m, g, t or p, in powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    count = float(match[1]) * 1024 ** _UNIT[(match[2] or "b").lower()] if match else -1.0
    if not 0 <= count < 1 << 62:
        raise UsageError(f"invalid size: {text!r}: write a number and a unit, as in 512m or 1g")
    return int(count)


def memory(text: str) -> int:
    limit = size(text)
    if 0 < limit < MINIMUM_MEMORY:
        raise UsageError(f"the smallest memory limit is 6m, not {text}")
    return limit


def cpus(text: str) -> int:
    """The quota for that many CPUs: microseconds in each CPU_PERIOD."""
    available = os.cpu_count() or 1
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"invalid number of CPUs: {text!r}: write a decimal number, as in 0.5") from None
    if number == 0:
        return 0
    if not 0.01 <= number <= available:
        raise UsageError(f"the number of CPUs ranges from 0.01 to {available}.00 on this machine, not {text}")
    return round(number * CPU_PERIOD)


def pids_limit(text: str) -> int:
    number = whole(text)
    if number is None or number < -1:
        raise UsageError(f"invalid limit of processes: {text!r}: write a whole number, or -1 for none")
    return max(number, 0)


def whole(text: str) -> int | None:
    """A whole number that a kernel's int takes; None for anything else, Python's `1_0` included."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,10}", text) and abs(int(text)) < 1 << 31 else None


def volume(text: str) -> Volume:
    """SRC:DST[:ro|:rw], SRC and DST absolute."""
    source, colon, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    if not colon or not destination or mode not in ("", "ro", "rw"):
        raise UsageError(f"invalid volume {text!r}: write SRC:DST or SRC:DST:ro")
    for path, which in ((source, "source"), (destination, "destination")):
        if not os.path.isabs(path):
            raise UsageError(f"invalid volume {text!r}: the {which} {path!r} is not an absolute path")
        if "\0" in path:
            raise UsageError(f"invalid volume {text!r}: a path cannot contain a null character")
    destination = os.path.normpath("/" + destination.lstrip("/"))
    if destination == "/":
        raise UsageError(f"invalid volume {text!r}: the destination cannot be '/'")
    return Volume(os.path.normpath(source), destination, mode == "ro")


def volumes(texts: Iterable[str]) -> tuple[Volume, ...]:
    """All of them; no two may have one destination."""
    found: dict[str, Volume] = {}
    for text in texts:
        parsed = volume(text)
        if found.setdefault(parsed.destination, parsed) is not parsed:
            raise UsageError(f"two volumes have the destination {parsed.destination!r}")
    return tuple(found.values())


def variable(text: str, environ: Mapping[str, str]) -> str:
    """NAME=VALUE as it is; NAME alone with its value in `environ`, or alone still when it has none there."""
    name, equals, _ = text.partition("=")
    if not name or "\0" in text:
        raise UsageError(f"invalid environment variable: {text!r}: write NAME=VALUE or NAME")
    if equals or name not in environ:
        return text
    return f"{name}={environ[name]}"


def directory(text: str) -> str:
    if not os.path.isabs(text):
        raise UsageError(f"the working directory {text!r} is not an absolute path")
    return os.path.normpath("/" + text.lstrip("/"))
