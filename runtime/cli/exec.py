"""`runtime exec`."""

from __future__ import annotations

import os

from runtime.cli import values
from runtime.cli.arguments import Given, Option, conceal
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "run another command in a running container"
USAGE = "[OPTIONS] CONTAINER COMMAND [ARG...]"
INTERSPERSED = False
OPTIONS = (
    Option("env", "e", "NAME=VALUE", "set a variable; NAME alone takes it from here"),
    Option("interactive", "i", help="pass standard input on to it"),
    Option("tty", "t", help="give it a terminal"),
    Option("user", "u", "USER[:GROUP]", "who runs the command (default the container's)"),
    Option("workdir", "w", "DIR", "where the command starts (default the container's)"),
)


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) < 2 or not given.arguments[1]:
        raise UsageError("it requires at least 2 arguments, a container and a command")
    reference, *command = given.arguments
    if given.flag("tty") and given.flag("interactive") and not os.isatty(0):
        raise UsageError("the input device is not a terminal: leave -t out, or run it in one")
    workdir = given.value("workdir")
    env = tuple(values.variable(text, os.environ) for text in given.values("env"))
    conceal(given.values("env"))

    from runtime.client.exec import execute
    from runtime.client.terminal import window
    from runtime.engine.containers.exec import ExecOptions

    wanted = ExecOptions(
        command=tuple(command),
        env=env,
        workdir=values.directory(workdir),
        user=given.value("user"),
        terminal=given.flag("tty"),
        stdin=given.flag("interactive"),
        window=window(1) if given.flag("tty") else (0, 0),
    )
    with settings.recovered() as installation:
        return execute(installation.containers.get(reference), wanted)
