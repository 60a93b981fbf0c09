"""`unionfs mount | umount | info`: words to a plan, a plan to a server, and one line when it cannot be. By the name
umount.fuse.unionfs it is what umount(8) calls ("EXTERNAL HELPERS"), so that that waits for the server as well.

Exit codes: 0; 1, refused or failed; 2, the command line makes no sense. trio and pyfuse3 are imported by a server only.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

_FORMS = """\
branches, in one of three forms (a backslash escapes ':', '=' and ','):
  unionfs mount LOWER:UPPER MOUNTPOINT             bottom to top; the last is writable unless marked =ro
  unionfs mount -o br=/UP=rw:/LOW=ro MOUNTPOINT    AUFS: top first; the first is writable
  unionfs mount -o lowerdir=A:B,upperdir=U,workdir=W MOUNTPOINT    overlayfs: lowerdir top first

permissions: rw, ro, rr (read-only medium); ro+wh and rr+wh are as ro and rr
options:     ro, nosuid, nodev, noexec, noatime … as for mount(8); allow_other is root's default;
             volatile: copy-ups do not wait for the disk, a power cut may leave files without their data;
             transport=auto|direct|pyfuse3: who speaks to the kernel; auto is direct where that works;
             passthrough=programs|all|none: which lower files the kernel reads by itself, from one cache for
             all mounts. Whoever has such a file open does not see what others write to it from then on, so
             the default is programs and libraries (ELF); posix is another word for none;
             xino=auto|on|off: inode numbers, where branches are on several file systems. auto: of 32 bits as
             far as they fit; on: of 64; off: of 32 at any rate, and not always the same on the next mount;
             spin=MICROSECONDS: how long a busy server polls for the next request before it sleeps
             (default 200, 0 is off);
             fsname=TEXT, subtype=WORD: what the table of mounts shows as its source, and as its type behind
             "fuse." (default unionfs, unionfs)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"unionfs: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="unionfs", description="A union of directories, in the layout of AUFS.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="mount|umount|info")
    mount = verbs.add_parser(
        "mount",
        help="mount a union; returns when it answers",
        epilog=_FORMS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    mount.add_argument("spec", nargs="?", metavar="LOWER:UPPER", help="branches, bottom to top")
    mount.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT")
    mount.add_argument("-o", dest="options", action="append", default=[], metavar="OPTION[,…]")
    mount.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground, log to stderr")
    mount.add_argument("--log", metavar="FILE", help="log to FILE instead of syslog")
    mount.add_argument("--debug", action="store_true", help="log every request and its answer (pyfuse3: those refused)")
    mount.add_argument(
        "--hand-over", type=int, metavar="FD",
        help="instead of a MOUNTPOINT, for programs: attach the mount nowhere, and send a descriptor of it over the "
        "Unix socket FD, with one of the server's process (a pidfd); it ends with what refers to it last",
    )  # fmt: skip
    umount = verbs.add_parser("umount", help="unmount; returns when the server has ended", allow_abbrev=False)
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    info = verbs.add_parser("info", help="say how a mount is served, without using it", allow_abbrev=False)
    info.add_argument("mountpoint", metavar="MOUNTPOINT")
    info.add_argument("--json", action="store_true", help="an object of JSON, for programs")
    return parser


def _mount(arguments: argparse.Namespace) -> int:
    from unionfs import options
    from unionfs.transport import background, branches, delivery, device, serve

    spec, mountpoint, receiver = arguments.spec, arguments.mountpoint, arguments.hand_over
    if mountpoint is None and receiver is None:
        spec, mountpoint = None, spec  # one word, and it is this one
    if (mountpoint is None) == (receiver is None):
        words = "MOUNTPOINT is missing" if receiver is None else "give a MOUNTPOINT or --hand-over, not both"
        print(f"unionfs: {words}; see 'unionfs mount --help'", file=sys.stderr)
        return 2
    if spec == "none" and arguments.options:
        spec = None  # the source that mount(8) passes for file systems without one
    try:
        wanted = options.parse(spec, arguments.options)
    except options.OptionError as error:
        print(f"unionfs: {error}", file=sys.stderr)
        return 2
    shown = device.Shown(wanted.fsname, wanted.subtype)
    goal: delivery.Delivery
    keep: tuple[int, ...] = ()
    if receiver is None:
        goal = delivery.AtMountPoint(branches.mount_point(mountpoint), shown)
        plan = branches.resolve(wanted, goal.name)
    else:
        connection = _socket(receiver)
        goal, keep = delivery.HandedOver(connection, shown), (connection.fileno(),)
        plan = branches.resolve(wanted, None)
    try:
        handler = background.log_handler(arguments.log, foreground=arguments.foreground)
    except OSError as error:
        raise OSError(error.errno, f"the log cannot be written ({error.strerror})", arguments.log) from None
    background.log_to(handler, debug=arguments.debug)

    def serve_it(ready: Callable[[], None]) -> None:
        serve.serve(plan, goal, ready)

    if arguments.foreground:
        serve_it(lambda: None)
    else:
        background.start(serve_it, handler, goal.name, keep)
    logging.shutdown()
    return 0


def _socket(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))  # the server closes the first three
    except OSError as error:
        text = f"no socket to hand the mount over to ({error.strerror})"
        raise OSError(error.errno, text, f"--hand-over {fd}") from None


def _umount(arguments: argparse.Namespace) -> int:
    from unionfs.transport.unmount import unmount

    unmount(arguments.mountpoint)
    return 0


def _umount_for_umount8(words: Sequence[str]) -> int:
    """As umount(8) calls a program of its own for a type: what it does not say how to do, it is to do itself."""
    parser = _Parser(prog="umount.fuse.unionfs", add_help=False, allow_abbrev=False)
    parser.add_argument("mountpoint")
    parser.add_argument("-t")
    for quiet in ("-n", "-v"):
        parser.add_argument(quiet, action="store_true")
    arguments, others = parser.parse_known_args(words)
    if others:  # -f, -l, -r, -N
        os.execvp("umount", ["umount", "--internal-only", *words])
    return _umount(arguments)


def _info(arguments: argparse.Namespace) -> int:
    from unionfs.transport import info

    facts = info.ask(arguments.mountpoint)
    if arguments.json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print(info.text(facts, arguments.mountpoint), end="")
    return 0


def _sentence(error: OSError) -> str:
    name = error.filename
    if name is None or isinstance(name, int):  # a descriptor says nothing to the reader
        return error.strerror or str(error)
    return f"{os.fsdecode(name)}: {error.strerror}"


def main(argv: Sequence[str] | None = None) -> int:
    try:
        if argv is None and os.path.basename(sys.argv[0]).startswith("umount."):
            return _umount_for_umount8(sys.argv[1:])
        arguments = _parser().parse_args(argv)
        return {"mount": _mount, "umount": _umount, "info": _info}[arguments.verb](arguments)
    except OSError as error:
        print(f"unionfs: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
