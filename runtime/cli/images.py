"""`runtime images`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from runtime.cli import human
from runtime.cli.options import Given, Option
from runtime.cli.settings import Settings
from runtime.engine.names import SHORT_ID
from runtime.errors import UsageError

SUMMARY = "list images"
USAGE = "[OPTIONS]"
INTERSPERSED = True
OPTIONS = (
    Option("no-trunc", help="ids in full"),
    Option("quiet", "q", help="only ids"),
)

_TITLES = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")
    settings.need_root()

    from runtime.images.store import ImageStore

    rows = []
    for image in ImageStore(settings.paths.images).list():
        shown = image.id if given.flag("no-trunc") else image.id.removeprefix("sha256:")[:SHORT_ID]
        if given.flag("quiet"):
            print(shown)
        for repository, tag in _names(image.references):
            rows.append((repository, tag, shown, _ago(image.created), human.size(image.size)))
    if not given.flag("quiet"):
        print(human.table(_TITLES, rows), end="")
    return 0


def _names(references: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The last colon parts name and tag: a registry's port comes before a slash, and a tag is always written."""
    for reference in references:
        repository, _, tag = reference.rpartition(":")
        yield repository, tag
    if not references:
        yield "<none>", "<none>"


def _ago(created: str) -> str:
    try:
        return human.ago(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return "unknown"
