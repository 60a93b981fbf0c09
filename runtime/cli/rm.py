"""`runtime rm`."""

from __future__ import annotations

from runtime.cli import each_of, tell
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings

SUMMARY = "remove containers, with what they changed"
USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
INTERSPERSED = True
OPTIONS = (Option("force", "f", help="kill a running one first"),)


def main(given: Given, settings: Settings) -> int:
    force = given.flag("force")

    from runtime.engine.containers.remove import remove
    from runtime.engine.storage.drivers import Away
    from runtime.engine.storage.leftovers import take_back_beside

    drivers = set()
    away: dict[str, Away] = {}
    with settings.recovered() as installation:

        def one(reference: str) -> None:
            container = installation.containers.get(reference, damaged=force)
            drivers.add(container.config.driver)
            remove(installation, container, force=force, tell=lambda driver: away.setdefault(driver.driver, driver))

        code = each_of("rm", given, "container", one)
        tell(away.values())
        take_back_beside(installation, drivers)
    return code
