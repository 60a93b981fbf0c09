"""How docker's command line writes values: sizes, CPUs, volumes, variables. Texts in, values out; what holds of the
values themselves the engine says (engine/containers/request.py)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from runtime.cli.arguments import pairs
from runtime.cli.usage import UsageError
from runtime.engine.containers import request
from runtime.engine.containers.request import Volume

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([bkmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_UNIT = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def size(text: str) -> int:
    """Bytes written as docker's sizes: a number and b, k, m, g, t or p, in powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    count = float(match[1]) * 1024 ** _UNIT[(match[2] or "b").lower()] if match else -1.0
    if not 0 <= count < 1 << 62:
        raise UsageError(f"invalid size: {text!r}: write a number and a unit, as in 512m or 1g")
    return int(count)


def cpus(text: str) -> int:
    """The quota for that many CPUs. InvalidValue for a number that this machine does not have."""
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"invalid number of CPUs: {text!r}: write a decimal number, as in 0.5") from None
    return request.cpu_quota(number)


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
    found = Volume(source, destination, mode == "ro")
    found.check()
    return Volume(os.path.normpath(source), os.path.normpath("/" + destination.lstrip("/")), found.read_only)


def variable(text: str, environ: Mapping[str, str]) -> str:
    """NAME=VALUE as it is; NAME alone with its value in `environ`, or alone still when it has none there."""
    request.check_variable(text)
    name, equals, _ = text.partition("=")
    if equals or name not in environ:
        return text
    return f"{name}={environ[name]}"


def directory(text: str) -> str:
    """A working directory, normal; "" for none given."""
    if not text:
        return ""
    request.check_directory(text)
    return os.path.normpath("/" + text.lstrip("/"))


def quota(texts: Iterable[str]) -> int:
    """The bytes of `run --storage-opt size=`, 0 for none. UsageError for any other option."""
    given = pairs(texts)
    for name in given:
        if name != "size":
            raise UsageError(
                f"a container has the storage option size and not {name!r}; those of a driver come before the verb"
            )
    limit = size(given.get("size", "0"))
    if "size" in given and not limit:
        raise UsageError(f"the smallest size of a container is 1m, not {given['size']}")
    return limit
