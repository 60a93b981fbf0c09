"""Where the verbs write archives to: standard output, or a file that is there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

from runtime.cli.usage import UsageError
from unionfs.linux.files import link_fd

Fill = Callable[[Callable[[bytes], object]], object]


def no_terminal(output: str) -> None:
    """UsageError when the archive would go to a terminal."""
    if not output and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("it does not write an archive to a terminal: redirect standard output, or use -o")


def write_archive(output: str, fill: Fill) -> None:
    """Have `fill` write to the file `output`, "" for standard output. OSError names the file."""
    if not output:
        fill(_to(1))
    elif os.path.exists(output) and not stat.S_ISREG(os.stat(output).st_mode):
        with open(output, "wb", buffering=0) as file:  # a device or a fifo: nothing to replace
            fill(_to(file.fileno()))
    else:
        _replace_file(output, fill)


def _to(fd: int) -> Callable[[bytes], object]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


def _replace_file(output: str, fill: Fill) -> None:
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
