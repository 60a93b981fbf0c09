"""`runtime export`."""

from __future__ import annotations

from runtime.cli.arguments import Given, Option
from runtime.cli.output import no_terminal, write_archive
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "write a container's file system to an archive"
USAGE = "[OPTIONS] CONTAINER"
INTERSPERSED = True
OPTIONS = (Option("output", "o", "FILE", "write there and not to standard output"),)


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 1:
        raise UsageError("it requires exactly 1 argument, a container")
    output = given.value("output")
    no_terminal(output)

    from runtime.engine.containers.changes import export

    with settings.recovered() as installation:
        container = installation.containers.get(given.arguments[0])
        write_archive(output, lambda write: export(installation, container, write))
    return 0
