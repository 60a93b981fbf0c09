"""`unionfs mount | umount | info | install-helpers`: words to a plan, a plan to a server, and one line when it cannot
be. By the names mount.TYPE and umount.TYPE it is what mount(8) and umount(8) call (`mount8`).

Exit codes: 0; 1, refused or failed; 2, the command line makes no sense. trio and pyfuse3 are imported by a server only.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

_FORMS = """\
branches, in one of three forms (a backslash escapes ':', '=' and ','):
  unionfs mount LOWER:UPPER MOUNTPOINT             bottom to top; the last is writable unless marked =ro
  unionfs mount -o br=/UP=rw:/LOW=ro MOUNTPOINT    AUFS: top first; the first is writable
  unionfs mount -o lowerdir=A:B,upperdir=U,workdir=W MOUNTPOINT    overlayfs: lowerdir top first

permissions: rw, ro, rr (read-only medium); ro+wh and rr+wh are as ro and rr
options:     ro, nosuid, nodev, noexec, noatime, sync … as for mount(8); allow_other is root's default;
             volatile: copy-ups do not wait for the disk, a power cut may leave files without their data;
             transport=auto|direct|pyfuse3: who speaks to the kernel; auto is direct where that works;
             passthrough=programs|all|none: which lower files the kernel reads by itself, from one cache for
             all mounts. Whoever has such a file open does not see what others write to it from then on, so
             the default is programs and libraries (ELF); posix is another word for none;
             xino=auto|on|off: inode numbers, where branches are on several file systems. auto: of 32 bits as
             far as they fit; on: of 64; off: of 32 at any rate, and not always the same on the next mount;
             spin=MICROSECONDS: how long a busy server polls for the next request before it sleeps
             (default 200, 0 is off);
             fsname=TEXT, subtype=WORD: what the table of mounts shows as the source, and as the type after
             "fuse." (default unionfs, unionfs)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"unionfs: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="unionfs", description="A union of directories, in the layout of AUFS.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="mount|umount|info|install-helpers")
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
        "Unix socket FD, with one of the server's process (a pidfd); the mount ends with the last reference to it",
    )  # fmt: skip
    umount = verbs.add_parser("umount", help="unmount; returns when the server has ended", allow_abbrev=False)
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    info = verbs.add_parser("info", help="say how a mount is served, without using it", allow_abbrev=False)
    info.add_argument("mountpoint", metavar="MOUNTPOINT")
    info.add_argument("--json", action="store_true", help="an object of JSON, for programs")
    install = verbs.add_parser(
        "install-helpers", allow_abbrev=False,
        help="let mount(8) and fstab(5) mount unions: 'mount -t fuse.unionfs LOWER:UPPER MOUNTPOINT'",
    )  # fmt: skip
    install.add_argument("directory", nargs="?", default="/sbin", metavar="DIRECTORY", help="default /sbin")
    install.add_argument("--remove", action="store_true", help="take the links away again")
    return parser


def _mount(arguments: argparse.Namespace) -> int:
    from unionfs import options
    from unionfs.transport import background, branches, delivery, device

    spec, mountpoint, receiver = arguments.spec, arguments.mountpoint, arguments.hand_over
    if mountpoint is None and receiver is None:
        spec, mountpoint = None, spec  # a single word is the mount point
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
    background.mount(
        plan, goal, foreground=arguments.foreground, log=arguments.log, debug=arguments.debug, keep=keep
    )
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


def _info(arguments: argparse.Namespace) -> int:
    from unionfs.transport import info

    facts = info.ask(arguments.mountpoint)
    if arguments.json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print(info.text(facts, arguments.mountpoint), end="")
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from unionfs.cli import installing

    if arguments.remove:
        installing.remove(arguments.directory)
        return 0
    for line in installing.install(arguments.directory):
        print(f"unionfs: {line}", file=sys.stderr)
    return 0


def _for_mount8(program: str, words: Sequence[str]) -> int:
    from unionfs import options
    from unionfs.cli import mount8

    try:
        return (mount8.mount if program.startswith("mount.") else mount8.umount)(program, words)
    except options.OptionError as error:
        said, code = str(error), mount8.INVOCATION
    except OSError as error:
        said, code = _sentence(error), mount8.FAILED
    except KeyboardInterrupt:
        return mount8.INTERRUPTED
    print(f"{program}: {said}", file=sys.stderr)
    return code


def _sentence(error: OSError) -> str:
    name = error.filename
    if name is None or isinstance(name, int):  # a descriptor says nothing to the reader
        return error.strerror or str(error)
    return f"{os.fsdecode(name)}: {error.strerror}"


def main(argv: Sequence[str] | None = None) -> int:
    program = os.path.basename(sys.argv[0])
    if argv is None and program.startswith(("mount.", "umount.")):
        return _for_mount8(program, sys.argv[1:])
    try:
        arguments = _parser().parse_args(argv)
        verb = {"mount": _mount, "umount": _umount, "info": _info, "install-helpers": _install}[arguments.verb]
        return verb(arguments)
    except OSError as error:
        print(f"unionfs: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
