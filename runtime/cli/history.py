"""`runtime history`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from runtime.cli import human
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.engine.containers.names import SHORT_ID

SUMMARY = "show the steps that an image was made in"
USAGE = "[OPTIONS] IMAGE"
INTERSPERSED = True
OPTIONS = (
    Option("human", "H", help="sizes and times for people; the default"),
    Option("no-trunc", help="ids and commands in full"),
    Option("quiet", "q", help="only ids"),
)

_TITLES = ("IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT")
_MISSING = "<missing>"  # only the last step's image has an id
_COMMAND = 45


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 1:
        raise UsageError("it requires exactly 1 argument, an image")
    settings.need_root()

    from runtime.images import document

    with settings.installation() as installation:
        image = installation.images.get(given.arguments[0])
        steps = document.parse_configuration(installation.images.read(image.id)).history
    full, people = given.flag("no-trunc"), given.flag("human") or "human" not in given.options
    rows: list[tuple[str, ...]] = []
    for step, size in reversed(_sized(steps, [layer.size for layer in image.blobs])):
        created = str(step.get("created") or "")
        command = " ".join(str(step.get("created_by") or "").split())
        if not full and len(command) > _COMMAND:
            command = command[: _COMMAND - 1] + "…"
        shown = (image.id if full else image.id[7 : 7 + SHORT_ID]) if not rows else _MISSING
        rows.append((
            shown, _moment(created, people=people), human.printable(command),
            human.size(size) if people else str(size), human.printable(str(step.get("comment") or "")),
        ))  # fmt: skip
    if given.flag("quiet"):
        print("".join(f"{row[0]}\n" for row in rows), end="")
    else:
        print(human.table(_TITLES, rows), end="")
    return 0


def _sized(steps: Sequence[dict[str, object]], sizes: Sequence[int]) -> list[tuple[dict[str, object], int]]:
    """Each step with the bytes of its layer as it is stored; layers that the history does not tell of come last."""
    left = list(sizes)
    told = [(step, 0 if step.get("empty_layer") or not left else left.pop(0)) for step in steps]
    return told + [({}, size) for size in left]


def _moment(created: str, *, people: bool) -> str:
    if not people:
        return human.printable(created) or "N/A"
    try:
        return human.ago(datetime.fromisoformat(created).timestamp())
    except (ValueError, OverflowError):
        return "N/A"
