"""Executing the container's command, as its user, with its PATH, inside its root; and saying why it cannot be done."""

from __future__ import annotations

import errno
import os
import stat
from typing import NoReturn

from runtime.oci import defaults, sync

# Tried again in the next directory of PATH, as execvp(3) does.
_NEXT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)


class CommandFault(Exception):
    def __init__(self, fault: sync.Fault) -> None:
        super().__init__(fault.step)
        self.fault = fault


def environment(entries: tuple[str, ...]) -> dict[bytes, bytes]:
    """NAME=VALUE entries; of two with one name the last wins."""
    pairs = (os.fsencode(entry).partition(b"=") for entry in entries)
    return {name: value for name, _, value in pairs}


def candidates(command: bytes, path: bytes) -> list[bytes]:
    """Where the command may be. Relative directories in PATH are left out: they would run what happens to lie in
    the working directory."""
    if b"/" in command:
        return [command]
    return [directory.rstrip(b"/") + b"/" + command for directory in path.split(b":") if directory.startswith(b"/")]


def execute(args: tuple[str, ...], env: dict[bytes, bytes]) -> NoReturn:
    """Never returns: the process becomes the command, or CommandFault says why not."""
    argv = [os.fsencode(argument) for argument in args]
    refused: OSError | None = None
    refused_path = argv[0]
    for path in candidates(argv[0], env.get(b"PATH", defaults.PATH.encode())):
        try:
            os.execve(path, argv, env)
        except OSError as error:
            if error.errno not in _NEXT:
                raise CommandFault(_explain(args[0], path, error)) from None
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) or os.path.lexists(path):
                refused, refused_path = refused or error, path
    if refused is not None:
        raise CommandFault(_explain(args[0], refused_path, refused))
    where = "no such file" if "/" in args[0] else "not found in $PATH"
    raise CommandFault(sync.Fault(sync.NOT_FOUND, f"run {args[0]!r}", where))


def _explain(name: str, path: bytes, error: OSError) -> sync.Fault:
    step = f"run {name!r}"
    if error.errno == errno.ENOENT:
        # The file is there: what is missing is the interpreter after its #!, or its dynamic loader.
        return sync.Fault(sync.NOT_FOUND, step, "its interpreter does not exist in the image")
    if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ETXTBSY):
        reason = error.strerror or ""
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                reason = "is a directory"
        except OSError:
            pass  # the reason of the refusal stands
        return sync.Fault(sync.NOT_EXECUTABLE, step, reason)
    return sync.Fault(sync.FAILED, step, error.strerror or str(error))
