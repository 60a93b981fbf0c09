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
    settings.need_root()

    from runtime.cli.progress import progress
    from runtime.events import Message
    from runtime.images.reference import parse
    from runtime.registry.access import Access
    from runtime.registry.push import push

    (text,) = given.arguments
    reference = parse(text)
    quiet = given.flag("quiet")
    access = Access(os.environ)
    with settings.installation() as installation, progress(sys.stdout, quiet=quiet) as shown:
        if text == reference.name:
            shown(Message("Using default tag: latest"))
        push(installation.images, access, reference, shown)
    if quiet:
        print(reference.full)
    return 0
