"""`runtime system prune`."""

from __future__ import annotations

from runtime.cli import prune
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "remove what nobody uses: containers, images, broken pulls"
USAGE = "[OPTIONS]"
INTERSPERSED = True
OPTIONS = (
    Option("all", "a", help="also images that have a tag, when no container is made of them"),
    prune.FORCE,
)

_WARNING = """This will remove:
  - all stopped containers, and snapshots without a container
  - all {images}
  - what broken pulls have left
"""


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")
    settings.need_root()
    named = given.flag("all")
    if not given.flag("force"):
        what = "images without at least one container associated to them" if named else "dangling images"
        prune.ask(_WARNING.format(images=what), "system prune")

    from runtime.engine.containers.prune import prune as ended
    from runtime.engine.images.prune import prune as unused
    from runtime.engine.storage import lost

    with settings.recovered() as installation:
        return prune.report(
            prune.containers(ended(installation)),
            prune.snapshots(lost.prune(installation)),
            prune.images(unused(installation, named=named)),
        )
