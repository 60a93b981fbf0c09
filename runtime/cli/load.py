"""`runtime load`."""

from __future__ import annotations

import sys

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "load images from an archive or an OCI layout"
USAGE = "[OPTIONS] (or with the archive on standard input)"
INTERSPERSED = True
OPTIONS = (
    Option("input", "i", "FILE", "read this archive, or this directory with an OCI layout"),
    Option("quiet", "q", help="say nothing but the names of the images"),
)


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments; name the archive with -i")
    path = given.value("input", "/dev/stdin")
    if path == "/dev/stdin" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("it reads an archive from standard input, which is a terminal; redirect one, or use -i")
    settings.need_root()

    from runtime.images.load import load

    with settings.installation() as installation:
        for image, names in load(installation.images, path):
            for name in names:
                print(f"Loaded image: {name}", flush=True)
            if not names:
                print(f"Loaded image ID: {image.id}", flush=True)
    return 0
