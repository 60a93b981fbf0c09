"""JSON records on disk, replaced whole: a reader sees the old record or the new one, never a part."""

from __future__ import annotations

import json
import os
from typing import Any


def write(path: str, record: Any) -> None:
    """Replace the record at `path`. One writer at a time: the holder of the container's lock.

    Not synced to disk: after a power cut the container is not running, whatever its record says, and
    recovery writes it anew.
    """
    partial = f"{path}.new"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(record, file, separators=(",", ":"))
        os.rename(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # write(2) and close(2) name no file


def read(path: str) -> Any:
    """The record at `path`; None where there is none, or where a power cut left an empty or cut one."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None
