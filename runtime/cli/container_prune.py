"""`runtime container prune`."""

from __future__ import annotations

from runtime.cli import prune
from runtime.cli.arguments import Given
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "remove the containers that have ended, and snapshots of containers that are lost"
USAGE = "[OPTIONS]"
INTERSPERSED = True
OPTIONS = (prune.FORCE,)


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")
    settings.need_root()
    if not given.flag("force"):
        prune.ask("This will remove all stopped containers, and snapshots without a container.", "container prune")

    from runtime.engine.containers.prune import prune as ended
    from runtime.engine.storage import leftovers, lost

    with settings.recovered() as installation:
        return prune.report(
            prune.containers(ended(installation)),
            prune.snapshots(lost.prune(installation)),
            prune.Part("Left over", [], *leftovers.take_back(installation)),
        )
