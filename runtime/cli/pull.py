"""`runtime pull`."""

from __future__ import annotations

import os
import sys

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "get an image from a registry"
USAGE = "[OPTIONS] NAME[:TAG|@DIGEST]"
INTERSPERSED = True
OPTIONS = (
    Option("all-tags", "a", help="all tags of the repository"),
    Option("platform", value="OS/ARCH", help="of an image for several, as in linux/arm64 (default this machine's)"),
    Option("quiet", "q", help="print the image's name only"),
)


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 1:
        raise UsageError("it requires exactly 1 argument, the name of an image")
    settings.need_root()

    from runtime.cli.progress import progress
    from runtime.engine.images.transfer import pull
    from runtime.images.platforms import parse_platform

    platform = parse_platform(given.value("platform")) if "platform" in given.options else None
    with settings.installation() as installation, progress(sys.stdout, quiet=given.flag("quiet")) as shown:
        pulled = pull(
            installation, given.arguments[0], os.environ, shown, platform=platform, all_tags=given.flag("all-tags")
        )
    print(pulled.full)
    return 0
