"""`runtime rmi`."""

from __future__ import annotations

from runtime.cli import each_of, tell
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings

SUMMARY = "remove images, or names of images"
USAGE = "IMAGE [IMAGE...]"
INTERSPERSED = True
OPTIONS: tuple[Option, ...] = ()


def main(given: Given, settings: Settings) -> int:
    from runtime.engine.images.remove import remove_image
    from runtime.engine.storage.drivers import Away

    away: dict[str, Away] = {}

    with settings.recovered() as installation:

        def one(reference: str) -> list[str]:
            removed = remove_image(installation, reference, tell=lambda driver: away.setdefault(driver.driver, driver))
            untagged, deleted = removed
            return [*(f"Untagged: {name}" for name in untagged), *(f"Deleted: {name}" for name in deleted)]

        code = each_of("rmi", given, "image", one)
    tell(away.values())
    return code
