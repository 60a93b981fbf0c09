"""`runtime push`."""

from __future__ import annotations

import os
import sys

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "give an image to a registry"
USAGE = "[OPTIONS] NAME[:TAG]"
INTERSPERSED = True
OPTIONS = (Option("quiet", "q", help="print the image's name only"),)


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 1:
        raise UsageError("it requires exactly 1 argument, the name of an image")
    quiet = given.flag("quiet")
    settings.need_root()

    from runtime.cli.progress import progress
    from runtime.engine.images.transfer import push

    with settings.installation() as installation, progress(sys.stdout, quiet=quiet) as shown:
        pushed = push(installation, given.arguments[0], os.environ, shown)
    if quiet:
        print(pushed.full)
    return 0
