"""`runtime diff`."""

from __future__ import annotations

import os

from runtime.cli import human
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "list what a container has added (A), changed (C) and deleted (D)"
USAGE = "CONTAINER"
INTERSPERSED = True
OPTIONS: tuple[Option, ...] = ()


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 1:
        raise UsageError("it requires exactly 1 argument, a container")

    from runtime.engine.containers.changes import changes

    with settings.recovered() as installation:
        found = changes(installation, installation.containers.get(given.arguments[0]))
    # The container chose the names: what it writes into them is not to reach a terminal, nor to look like a line.
    for change in found:
        print(change.kind, human.path(os.fsdecode(change.path)))
    return 0
