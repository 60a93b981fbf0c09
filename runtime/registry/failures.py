"""How a registry can fail us. Messages are whole sentences for the user, and name the registry.

    RegistryError (runtime.errors)   lies, nonsense, configuration
    ├── Unreachable                  no connection, or it broke or stalled
    └── Answered                     an HTTP status that says no
"""

from __future__ import annotations

from runtime.errors import RegistryError


class Unreachable(RegistryError):
    """`transient`: the line was there and broke, so another try may find it again."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class Answered(RegistryError):
    """`status` is HTTP's, `codes` are those of the error document (distribution-spec, "Error Codes"), `retry_after`
    seconds, None when the registry did not say."""

    def __init__(
        self, message: str, *, status: int, codes: tuple[str, ...] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.codes, self.retry_after = status, codes, retry_after


def printable(text: str, most: int = 200) -> str:
    """A server's text, fit for one line of a terminal: no control characters, not endless."""
    shown = "".join(character if character.isprintable() else " " for character in text[: most + 1])
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else shown[:most] + "…"
