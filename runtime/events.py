"""What happens while a verb is at work, as values, told to the listener that was handed in.

Whoever hands one in reads them as it needs: the command line draws them (cli/progress.py); docker's API has an object
of JSON for each, {"id", "status", "progressDetail": {"current", "total"}} for a Progress, {"status"} for the others.
They lie beside errors.py and not in the engine, since registry/, below it, tells them too.

A listener is called in whatever thread something happens in, and must be quick; what it raises ends the verb.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """What has become of a part of the work, as of a layer: `status` in docker's words, "Downloading", "Pull complete".

    Told often while bytes are moving: `current` of `total` are through. Both are 0 for a mere change of state.
    """

    id: str
    status: str
    current: int = 0
    total: int = 0


class Notice(NamedTuple):
    """Something that is worth a line, beside work that goes on."""

    text: str


class Message(NamedTuple):
    """A line that stays. Whatever was in progress before is over."""

    text: str


Event = Progress | Notice | Message
Listener = Callable[[Event], object]


def unheard(event: Event) -> None:
    """The listener of whoever does not want to hear."""
