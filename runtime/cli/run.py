"""`runtime run`."""

from __future__ import annotations

import os
import sys

from runtime.cli import values
from runtime.cli.arguments import Given, Option, conceal
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.engine.containers import names
from runtime.engine.containers.request import CreateRequest

SUMMARY = "make a container of an image and run a command in it"
USAGE = "[OPTIONS] IMAGE [COMMAND] [ARG...]"
INTERSPERSED = False
OPTIONS = (
    Option("cpus", value="NUMBER", help="how many CPUs' time it may use, as in 0.5"),
    Option("detach", "d", help="leave it running and print its id"),
    Option("env", "e", "NAME=VALUE", "set a variable; NAME alone takes it from here"),
    Option("hostname", "h", "NAME", help="its host name (default the beginning of its id)"),
    Option("interactive", "i", help="pass standard input on to it"),
    Option("memory", "m", "SIZE", "how much memory it may use, as in 512m"),
    Option("name", value="NAME", help="its name (default one made up)"),
    Option("network", value="NAME", help="bridge, none or host (default bridge)"),
    Option("pids-limit", value="NUMBER", help="how many processes it may have, -1 for no limit"),
    Option("pull", value="WHEN", help="get the image from its registry: missing, always or never (default missing)"),
    Option("rm", help="remove it when it ends"),
    Option("storage-opt", value="size=SIZE", help="how much it may write, as in size=10g, where the driver can tell"),
    Option("tty", "t", help="give it a terminal"),
    Option("user", "u", "USER[:GROUP]", "who runs the command, by name or number (default the image's)"),
    Option("volume", "v", "SRC:DST[:ro]", "show the host's SRC in it as DST"),
    Option("workdir", "w", "DIR", "where the command starts (default the image's)"),
)


def main(given: Given, settings: Settings) -> int:
    wanted = read(given)
    conceal(given.values("env"))
    detach = given.flag("detach")
    settings.need_root()
    if wanted.terminal and wanted.stdin and not detach and not os.isatty(0):
        raise UsageError("the input device is not a terminal: leave -t out, or run it in one")

    from runtime.cli.progress import progress
    from runtime.client.signals import held
    from runtime.client.terminal import window
    from runtime.client.waiting import answered
    from runtime.engine.containers.run import running

    size = window(1) if wanted.terminal else (0, 0)
    with (
        settings.installation() as installation,
        progress(sys.stderr) as shown,  # standard output is the container's
        running(
            installation, wanted, size, shown, debug=settings.debug, answered=answered, held=held
        ) as (container, task),
    ):
        if detach:
            print(container.id)
            return 0
        from runtime.client.foreground import foreground

        ended = foreground(task.line, 0, stdin=wanted.stdin, wants_terminal=wanted.terminal)
        task.wait()
        if ended.trouble:
            print(f"runtime: {ended.trouble}", file=sys.stderr)
        return ended.code


def read(given: Given) -> CreateRequest:
    """The options as values. UsageError, InvalidValue."""
    if not given.arguments:
        raise UsageError("it requires at least 1 argument, the image")
    image, *command = given.arguments
    pull = given.value("pull", "missing")
    if pull not in ("missing", "always", "never"):
        raise UsageError(f"invalid --pull {pull!r}: write missing, always or never")
    wanted = CreateRequest(
        image=image,
        command=tuple(command),
        name=names.check_name(given.value("name")) if "name" in given.options else "",
        hostname=given.value("hostname"),
        env=tuple(values.variable(text, os.environ) for text in given.values("env")),
        workdir=values.directory(given.value("workdir")),
        user=given.value("user"),
        volumes=tuple(values.volume(text) for text in given.values("volume")),
        memory=values.size(given.value("memory", "0")),
        cpu_quota=values.cpus(given.value("cpus", "0")),
        pids=values.pids_limit(given.value("pids-limit", "0")),
        network=given.value("network", "bridge"),
        pull=pull,
        remove=given.flag("rm"),
        terminal=given.flag("tty"),
        stdin=given.flag("interactive"),
        quota=values.quota(given.values("storage-opt")),
    )
    wanted.check()
    return wanted
