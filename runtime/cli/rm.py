"""`runtime rm`."""

from __future__ import annotations

from runtime.cli import each_of
from runtime.cli.options import Given, Option
from runtime.cli.settings import Settings

SUMMARY = "remove containers, with what they changed"
USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
INTERSPERSED = True
OPTIONS = (Option("force", "f", help="kill a running one first"),)


def main(given: Given, settings: Settings) -> int:
    store = settings.store()
    force = given.flag("force")

    from runtime.engine.stop import remove

    def one(reference: str) -> None:
        remove(store, store.get(reference, damaged=force), force=force)

    return each_of(given, "container", one)
