"""`runtime stop`."""

from __future__ import annotations

from runtime.cli import each_of, values
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "ask containers to end, and kill those that do not"
USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
INTERSPERSED = True
OPTIONS = (Option("time", "t", "SECONDS", "how long to wait before killing, -1 for ever (default 10)"),)


def main(given: Given, settings: Settings) -> int:
    text = given.value("time", "10")
    seconds = values.whole(text)
    if seconds is None:
        raise UsageError(f"invalid time: {text!r}: write whole seconds, or -1 to wait for ever")

    from runtime.engine.containers.stop import stop

    with settings.recovered() as installation:

        def one(reference: str) -> None:
            container = installation.containers.get(reference)
            patience = None if seconds < 0 else float(seconds)
            stop(installation, container, number=container.config.stop_signal, patience=patience)

        return each_of("stop", given, "container", one)
