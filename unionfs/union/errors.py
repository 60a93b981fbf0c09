"""How the union says no: an OSError with errno, text and the name at fault, which `serve` maps to a reply."""

from __future__ import annotations

import os
from typing import NoReturn


def fail(code: int, name: bytes | None = None, why: str | None = None) -> NoReturn:
    """Raise the OSError subclass of `code`. `why` replaces errno's own text."""
    raise OSError(code, why or os.strerror(code), name)
