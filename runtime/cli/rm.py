"""`runtime rm`."""

from __future__ import annotations

from runtime.cli import each_of, tell
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
    from runtime.engine.stores import Away

    drivers = set()
    away: dict[str, Away] = {}

    def one(reference: str) -> None:
        container = store.get(reference, damaged=force)
        drivers.add(container.config.driver)
        remove(store, container, force=force, tell=lambda driver: away.setdefault(driver.driver, driver))

    code = each_of("rm", given, "container", one)
    tell(away.values())
    take_back_beside(store, drivers)
    return code
