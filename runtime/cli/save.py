"""`runtime save`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from runtime.cli.arguments import Given, Option
from runtime.cli.output import no_terminal, write_archive
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.errors import ImageError

SUMMARY = "write images to an archive that docker and others load"
USAGE = "[OPTIONS] IMAGE [IMAGE...]"
INTERSPERSED = True
OPTIONS = (
    Option("format", value="FORMAT", help="docker (which is an OCI layout too), oci, or oci-dir, a directory"),
    Option("output", "o", "FILE", "write there and not to standard output"),
)

_FORMATS = ("docker", "oci", "oci-dir")


def main(given: Given, settings: Settings) -> int:
    if not given.arguments:
        raise UsageError("it requires at least 1 argument, an image")
    form = given.value("format", "docker")
    if form not in _FORMATS:
        raise UsageError(f"invalid format {form!r}: it is one of {', '.join(_FORMATS)}")
    output = given.value("output")
    if not output and form == "oci-dir":
        raise UsageError("a directory needs a name: use -o")
    if form != "oci-dir":
        no_terminal(output)
    settings.need_root()

    from runtime.images import save

    with settings.installation() as installation:
        store = installation.images
        images = save.choose(store, given.arguments)

        def fill(write: Callable[[bytes], object]) -> None:
            save.archive(store, images, write, docker=form == "docker")

        if form == "oci-dir":
            _make_directory(output, lambda path: save.directory(store, images, path))
        else:
            write_archive(output, fill)
    return 0


def _make_directory(output: str, fill: Callable[[str], None]) -> None:
    if os.path.lexists(output):
        raise ImageError(f"{output} is there already; name a directory that is to be made")
    fresh = f"{output.rstrip('/')}.{os.getpid()}.new"
    try:
        fill(fresh)
        os.rename(fresh, output)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError) and not error.filename:
            raise OSError(error.errno, error.strerror, output) from None
        raise
