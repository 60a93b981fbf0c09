"""`runtime image prune`."""

from __future__ import annotations

from runtime.cli import prune
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "remove images that nobody uses, and what broken pulls left"
USAGE = "[OPTIONS]"
INTERSPERSED = True
OPTIONS = (
    Option("all", "a", help="also images that have a tag, when no container is made of them"),
    prune.FORCE,
)


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")
    settings.need_root()
    named = given.flag("all")
    if not given.flag("force"):
        what = "images without at least one container associated to them" if named else "dangling images"
        prune.ask(f"This will remove all {what}.", "image prune")

    from runtime.engine.images.prune import prune as unused

    with settings.recovered() as installation:
        return prune.report(prune.images(unused(installation, named=named)))
