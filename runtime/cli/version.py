"""`runtime version`."""

from __future__ import annotations

import platform

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "show the version of this runtime"
USAGE = ""
INTERSPERSED = True
OPTIONS: tuple[Option, ...] = ()


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("fuse-aufs")
    except PackageNotFoundError:
        number = "unknown (not installed)"
    print(f"fuse-aufs runtime {number}, Python {platform.python_version()}, Linux {platform.release()}")
    return 0
