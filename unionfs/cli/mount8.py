"""As mount(8) and umount(8) call a program of its own for a type ("EXTERNAL HELPERS"), by its name:

    mount.fuse.unionfs SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
    umount.fuse.unionfs DIRECTORY [-nv] [-t TYPE]      what else there is umount(8) does itself

SOURCE is LOWER:UPPER, or any name where the options have the branches. The table of mounts shows it as it is given, for
`mount -a` knows by it what is mounted already; and the type by which we are called.

Exit codes are mount(8)'s: 1, the words make no sense; 8, interrupted; 32, refused or failed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from unionfs import options

INVOCATION, INTERRUPTED, FAILED = 1, 8, 32


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise options.OptionError(message)


def mount(program: str, words: Sequence[str]) -> int:
    """Raises OptionError and OSError."""
    parser = _Parser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("source")
    parser.add_argument("directory")
    parser.add_argument("-o", action="append", default=[])
    parser.add_argument("-t", default=program.removeprefix("mount."))
    parser.add_argument("-N")
    for flag in "sfnv":
        parser.add_argument(f"-{flag}", action="store_true")
    asked = parser.parse_args(words)
    listed, remounts = _without_remount(asked.o)
    if asked.N is not None:
        from unionfs.transport import namespace

        namespace.enter(asked.N)
    if remounts:
        from unionfs.transport import remount

        remount.remount(asked.directory, asked.source, listed, sloppy=asked.s, fake=asked.f)
        done = "remounted"
    else:
        _mount_anew(asked.source, asked.directory, asked.t, listed, sloppy=asked.s, fake=asked.f)
        done = "mounted"
    if asked.v:
        print(f"{program}: {asked.source} {'could be ' if asked.f else ''}{done} on {asked.directory}.")
    return 0


def _mount_anew(source: str, directory: str, fstype: str, listed: Sequence[str], *, sloppy: bool, fake: bool) -> None:
    from unionfs.transport import background, branches, delivery, device

    spec = None if ":" not in source and options.names_branches(listed) else source
    shown = [*options.shown_as(source, fstype.removeprefix("fuse.")), *listed]
    wanted = options.parse(spec, shown, rw_is_default=True, sloppy=sloppy)
    target = branches.mount_point(directory)
    plan = branches.resolve(wanted, target)
    if fake:
        return
    background.mount(plan, delivery.AtMountPoint(target, device.Shown(plan.fsname, plan.subtype)))


def _without_remount(listed: Sequence[str]) -> tuple[list[str], bool]:
    words = [word for text in listed for word in options.split(text)]
    others = [word for word in words if word != "remount"]
    return others, len(others) < len(words)


def umount(program: str, words: Sequence[str]) -> int:
    """Raises OptionError and OSError."""
    parser = _Parser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("directory")
    parser.add_argument("-t")
    for quiet in ("-n", "-v"):
        parser.add_argument(quiet, action="store_true")
    asked, others = parser.parse_known_args(words)
    if others:  # -f, -l, -r, -N
        os.execvp("umount", ["umount", "--internal-only", *words])
    from unionfs.transport.unmount import unmount

    unmount(asked.directory, elsewhere=True)
    return 0
