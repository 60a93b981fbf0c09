"""`runtime save`."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

from runtime.cli.options import Given, Option
from runtime.cli.settings import Settings
from runtime.errors import ImageError, UsageError
from unionfs.linux.files import link_fd

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
    if not output and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("it does not write an archive to a terminal: redirect standard output, or use -o")
    settings.need_root()

    from runtime.images import save
    from runtime.images.store import ImageStore

    store = ImageStore(settings.paths.images)
    images = save.choose(store, given.arguments)

    def fill(write: Callable[[bytes], object]) -> None:
        save.archive(store, images, write, docker=form == "docker")

    if form == "oci-dir":
        _make_directory(output, lambda path: save.directory(store, images, path))
    elif not output:
        fill(_to(1))
    elif os.path.exists(output) and not stat.S_ISREG(os.stat(output).st_mode):
        with open(output, "wb", buffering=0) as file:  # a device or a fifo: nothing to replace
            fill(_to(file.fileno()))
    else:
        _replace_file(output, fill)
    return 0


def _to(fd: int) -> Callable[[bytes], object]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


def _replace_file(output: str, fill: Callable[[Callable[[bytes], object]], None]) -> None:
    """A new file, 0600 as docker's, in the place of what is there once it is whole; before that it has no name."""
    fresh = f"{output}.{os.getpid()}.new"
    try:
        fd = os.open(os.path.dirname(output) or ".", os.O_TMPFILE | os.O_WRONLY, 0o600)
        named = False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        named = True
    try:
        try:
            fill(_to(fd))
            os.fsync(fd)
            if not named:
                _name(fd, fresh)
                named = True
        finally:
            os.close(fd)
        os.rename(fresh, output)
    except BaseException as error:
        if named:
            with suppress(FileNotFoundError):
                os.unlink(fresh)
        if isinstance(error, OSError) and not error.filename:
            raise OSError(error.errno, error.strerror, output) from None
        raise


def _name(fd: int, path: str) -> None:
    directory_fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        link_fd(fd, directory_fd, os.fsencode(os.path.basename(path)))
    finally:
        os.close(directory_fd)


def _make_directory(output: str, fill: Callable[[str], None]) -> None:
    if os.path.lexists(output):
        raise ImageError(f"{output} is there already; name a directory that is to be made")
    fresh = f"{output.rstrip('/')}.{os.getpid()}.new"
    try:
        fill(fresh)
        os.rename(fresh, output)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
