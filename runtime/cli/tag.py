"""`runtime tag`."""

from __future__ import annotations

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "give an image another name"
USAGE = "IMAGE NAME[:TAG]"
INTERSPERSED = True
OPTIONS: tuple[Option, ...] = ()


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 2:
        raise UsageError("it requires exactly 2 arguments, an image and its new name")
    with settings.installation() as installation:
        installation.images.tag(*given.arguments)
    return 0
