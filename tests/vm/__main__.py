"""The command line of the guest; see tests/vm/__init__.py."""

from __future__ import annotations

import argparse
import os
import sys

from tests.vm import guest, zfs
from tests.vm.kernel import kernel
from tests.vm.packages import Unavailable


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="Runs a command in a virtual machine.")
    parser.add_argument("--zfs", action="store_true", help="with zfs, which is built when it never was")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="boot included (600)")
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB", help="of the guest (3072)")
    parser.add_argument("--prepare", action="store_true", help="only fetch the kernel and build zfs")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="run as root in the repository's directory")
    options = parser.parse_args()
    if bool(options.command) == options.prepare:
        parser.error("either a command or --prepare")
    try:
        if options.prepare:
            zfs.layer(kernel())
            return 0
        return guest.run(
            options.command, _write, with_zfs=options.zfs, timeout=options.timeout, memory=options.memory
        )
    except guest.TimedOut as error:
        print(error, file=sys.stderr)
        return guest.TIMED_OUT
    except (Unavailable, guest.GuestFailed) as error:
        print(f"tests.vm: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
