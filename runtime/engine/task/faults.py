"""An error as the frame that tells a client of it."""

from __future__ import annotations

import sys

from drivers.errors import DriverError
from runtime.engine import frames
from runtime.errors import RuntimeFault, sentence


def fault(error: Exception, *, tried: str, besides: str = "") -> bytes:
    """The error, as that its cause is in what was `tried`; `besides` is what went wrong after it."""
    name, message = _named(error, tried)
    return frames.pack_json(
        frames.FAULT, {"fault": name, "message": f"{message}; {besides}" if besides else message}
    )


def _named(error: Exception, tried: str) -> tuple[str, str]:
    """The class name and the line to report an error with."""
    if isinstance(error, RuntimeFault):
        return type(error).__name__, sentence(error)
    if isinstance(error, DriverError):
        return RuntimeFault.__name__, sentence(error)
    if isinstance(error, OSError):
        return RuntimeFault.__name__, f"cannot {tried}: {sentence(error)}"
    sys.excepthook(type(error), error, error.__traceback__)  # seen with --debug only: standard error is /dev/null
    return RuntimeFault.__name__, f"internal error: {type(error).__name__}: {sentence(error)}"
