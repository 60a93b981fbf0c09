"""JSON records on disk, replaced whole: a reader sees the old record or the new one, never a part.

Two ways to write one. What must outlive the machine (below --root) is kept: durable before what depends on it is done.
What goes with the machine (below --state, which is in memory) is only written.

A record that is there and cannot be understood is not a missing one: it says that something was here, and what it was
about is not taken for garbage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from enum import Enum
from functools import cache
from typing import Any, get_origin, get_type_hints

from drivers.disk import durable
from runtime.errors import DamagedRecord


def keep(path: str, record: Any, *, first: Sequence[str] = ()) -> None:
    """Replace the record at `path` durably, as durable.replace() does. One writer at a time: the holder of the
    container's lock."""
    durable.replace(path, _encoded(record), first=first)


def write(path: str, record: Any) -> None:
    """Replace the record at `path`, which need not outlive the machine. One writer at a time, as above."""
    partial = f"{path}{durable.FRESH}"
    try:
        with open(partial, "wb") as file:
            file.write(_encoded(record))
        os.rename(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # write(2) and close(2) name no file


def _encoded(record: Any) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def read(path: str) -> Any:
    """The record at `path`, None where there is none. Raises DamagedRecord."""
    try:
        return _read(path)
    except FileNotFoundError:
        return None


def _read(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            content = file.read()
        return json.loads(content)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedRecord(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise DamagedRecord(f"{path} is damaged: it is {'no JSON' if content.strip(bytes(1)) else 'empty'}") from None


def fields(path: str, shape: type, *, former: Collection[str] = ()) -> dict[str, Any] | None:
    """The record at `path` as the arguments of the NamedTuple `shape`; None where there is none. Fields that `shape`
    had in a `former` version are left out. Raises DamagedRecord, also for a record of something else."""
    try:
        record = _read(path)
    except FileNotFoundError:
        return None
    hints = _hints(shape)
    optional: set[str] = set(shape._field_defaults)  # type: ignore[attr-defined]
    try:
        record = {name: value for name, value in record.items() if name not in former}
        if not hints.keys() - optional <= record.keys() <= hints.keys():
            raise ValueError
        return {name: _as(hints[name], value) for name, value in record.items()}
    except (AttributeError, TypeError, ValueError):
        raise DamagedRecord(f"{path} is damaged: it is no record of what belongs there") from None


@cache
def _hints(shape: type) -> dict[str, Any]:
    return get_type_hints(shape)


def _as(hint: Any, value: Any) -> Any:
    """What JSON made of a value of that type, as it was. TypeError or ValueError when it cannot be one."""
    kind = get_origin(hint) or hint
    if issubclass(kind, Enum):
        return kind(value)
    if kind is tuple and type(value) is list and all(type(one) is str for one in value):
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value
