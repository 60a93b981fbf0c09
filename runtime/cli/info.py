"""`runtime info`."""

from __future__ import annotations

import os
import platform

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "show what this machine and this installation offer"
USAGE = ""
INTERSPERSED = True
OPTIONS: tuple[Option, ...] = ()


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")

    from runtime.engine import facts
    from runtime.engine.state import Status

    with settings.recovered() as installation:
        counted = facts.containers(installation)
        images = installation.images.list()
        drivers = facts.drivers(installation)
    layout, controllers = facts.cgroups()
    by_name = dict(controllers)
    lines = [
        f"Containers: {sum(counted.values())}",
        *(f"  {status.value}: {counted[status]}" for status in (Status.RUNNING, Status.CREATED, Status.EXITED)),
        *([f"  dead: {counted[Status.DEAD]}"] if counted[Status.DEAD] else []),
        f"Images: {len(images)}",
        f"Root: {settings.paths.root}",
        f"State: {settings.paths.state}",
        "Storage drivers:",
        *(
            f"  {'*' if driver.name == settings.storage.driver else ' '} {driver.name}: "
            f"{'works' if driver.works else 'does not work'}: {driver.reason}"
            for driver in drivers
        ),
        f"Cgroups: {layout}",
        *(f"  {name}: v{version}" for name, version in controllers),
        *(f"  {name}: missing, its limit cannot be set" for name in facts.LIMITS if name not in by_name),
        "Kernel:",
        f"  version: {platform.release()}",
        f"  processors: {os.cpu_count()}",
        *(f"  {feature.name}: {feature.detail if feature.present else 'missing'}" for feature in facts.features()),
    ]
    print("\n".join(lines))
    return 0
