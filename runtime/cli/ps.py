"""`runtime ps`."""

from __future__ import annotations

import re
import time

from runtime.cli import human
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.engine.containers.container import Container
from runtime.engine.containers.names import SHORT_ID
from runtime.engine.state import State, Status
from runtime.errors import NoSuchContainer

SUMMARY = "list containers"
USAGE = "[OPTIONS]"
INTERSPERSED = True
OPTIONS = (
    Option("all", "a", help="also those that do not run"),
    Option("no-trunc", help="ids and commands in full"),
    Option("quiet", "q", help="only ids"),
)

_TITLES = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES")
_COMMAND = 20
_UNKNOWN = "<none>"
_RECORD = re.compile(r"(config|state|status)\.json .*")


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")
    full = given.flag("no-trunc")
    rows = []
    with settings.recovered() as installation:
        store = installation.containers
        listed = [*store, *(store.damaged() if given.flag("all") else ())]
    for container in listed:
        try:
            state = container.state()
        except NoSuchContainer:
            continue
        if given.flag("all") or state.status is Status.RUNNING:
            rows.append(row(container, state, full=full))
    if given.flag("quiet"):
        print("".join(f"{row[0]}\n" for row in rows), end="")
    else:
        print(human.table(_TITLES, rows), end="")
    return 0


def row(container: Container, state: State, *, full: bool) -> tuple[str, ...]:
    config = container.config
    command = " ".join(" ".join(config.command).split())
    if not full and len(command) > _COMMAND:
        command = command[: _COMMAND - 1] + "…"
    shown = config.id if full else config.id[:SHORT_ID]
    image = config.image or _UNKNOWN
    return shown, image, f'"{human.printable(command)}"', human.ago(config.created), status(state), config.name


def status(state: State) -> str:
    if state.status is Status.RUNNING:
        return f"Up {human.span(time.time() - state.started)}"
    if state.status is Status.EXITED:
        return f"Exited ({state.exit_code}) {human.ago(state.finished)}"
    if state.status is Status.DEAD:
        found = _RECORD.search(state.error)  # its directory has the id, which is in another column
        return f"Dead ({found[0] if found else state.error})"
    return str(state.status.value).capitalize()
