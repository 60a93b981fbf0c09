"""ArchiveError, what becomes one, and how a name out of an archive is written in a sentence."""

from __future__ import annotations

_SHOWN = 160


def shown(name: bytes) -> str:
    """`name` fit for one line on a terminal: control characters escaped, the middle of a very long one left out."""
    text = name.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"


class ArchiveError(Exception):
    """An archive that is damaged, hostile, too large, or that this machine cannot take. str() is one line.

    `entry` is the name of the member at fault and `offset` the byte of the uncompressed archive where its header
    begins, when they are known.
    """

    def __init__(self, why: str, *, entry: bytes | None = None, offset: int | None = None) -> None:
        self.why, self.entry, self.offset = why, entry, offset
        where = "" if offset is None else f" (byte {offset})"
        super().__init__(f"{shown(entry)}{where}: {why}" if entry is not None else f"{why}{where}")


class Refused(Exception):
    """A refusal by code that does not know which entry it is for. str() is the sentence, for Entry.refuse()."""
