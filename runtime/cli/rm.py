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

    from runtime.engine.leftovers import take_back_beside
    from runtime.engine.stop import remove

    drivers = set()

    def one(reference: str) -> None:
        container = store.get(reference, damaged=force)
        drivers.add(container.config.driver)
        remove(store, container, force=force)

    code = each_of("rm", given, "container", one)
    take_back_beside(store, drivers)
    return code
