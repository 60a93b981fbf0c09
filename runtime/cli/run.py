"""`runtime run`."""

from __future__ import annotations

import os
import sys

from runtime.cli.options import Given, Option, conceal
from runtime.cli.settings import Settings
from runtime.engine import names, options, storage
from runtime.engine.options import RunOptions
from runtime.errors import UsageError

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
    wish = read(given)
    conceal(given.values("env"))
    detach = given.flag("detach")
    settings.need_root()
    if wish.terminal and wish.stdin and not detach and not os.isatty(0):
        raise UsageError("the input device is not a terminal: leave -t out, or run it in one")

    from runtime.client.run import running
    from runtime.client.terminal import window

    size = window(1) if wish.terminal else (0, 0)
    with running(settings.paths, settings.storage, wish, size, debug=settings.debug) as (container, shim):
        if detach:
            print(container.id)
            return 0
        from runtime.client.foreground import foreground

        ended = foreground(shim.line, 0, stdin=wish.stdin, wants_terminal=wish.terminal)
        shim.wait()
        if ended.trouble:
            print(f"runtime: {ended.trouble}", file=sys.stderr)
        return ended.code


def read(given: Given) -> RunOptions:
    """The options as values, or UsageError."""
    if not given.arguments:
        raise UsageError("it requires at least 1 argument, the image")
    image, *command = given.arguments
    if not image:
        raise UsageError("the name of the image is empty")
    pull = given.value("pull", "missing")
    if pull not in ("missing", "always", "never"):
        raise UsageError(f"invalid --pull {pull!r}: write missing, always or never")
    name, hostname, workdir = given.value("name"), given.value("hostname"), given.value("workdir")
    return RunOptions(
        image=image,
        command=tuple(command),
        name=names.check_name(name) if "name" in given.options else "",
        hostname=names.check_hostname(hostname) if hostname else "",
        env=tuple(options.variable(text, os.environ) for text in given.values("env")),
        workdir=options.directory(workdir) if workdir else "",
        user=given.value("user"),
        volumes=options.volumes(given.values("volume")),
        memory=options.memory(given.value("memory", "0")),
        cpu_quota=options.cpus(given.value("cpus", "0")),
        pids=options.pids_limit(given.value("pids-limit", "0")),
        network=given.value("network", "bridge"),
        pull=pull,
        remove=given.flag("rm"),
        terminal=given.flag("tty"),
        stdin=given.flag("interactive"),
        quota=storage.quota(given.values("storage-opt")),
    )
