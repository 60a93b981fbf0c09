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

    from drivers.diff import write_tree
    from drivers.diff.snapshots import tree
    from runtime.engine.containers import trees

    with settings.recovered() as installation:
        container = installation.containers.get(given.arguments[0])
        driver = installation.drivers.get(container.config.driver)
        with trees.live(container) as live, tree(driver, container.id, live) as root_fd:
            write_archive(output, lambda write: write_tree(root_fd, write))
    return 0
