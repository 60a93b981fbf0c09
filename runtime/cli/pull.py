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
    from runtime.events import Message
    from runtime.images.platforms import parse_platform
    from runtime.images.reference import parse
    from runtime.registry.access import Access
    from runtime.registry.pull import pull, pull_all

    (text,) = given.arguments
    reference = parse(text)
    platform = parse_platform(given.value("platform")) if "platform" in given.options else None
    tagged = ":" in text.rpartition("/")[2] or bool(reference.digest)
    every = given.flag("all-tags")
    if every and tagged:
        raise UsageError("--all-tags takes a name without a tag or digest")
    access = Access(os.environ)
    with settings.installation() as installation, progress(sys.stdout, quiet=given.flag("quiet")) as shown:
        if not tagged and not every:
            shown(Message("Using default tag: latest"))
        driver = installation.drivers.chosen()  # before anything is transferred: it may not work here
        (pull_all if every else pull)(installation.images, access, reference, driver, shown, platform=platform)
    print((reference._replace(tag="") if every else reference).full)
    return 0
