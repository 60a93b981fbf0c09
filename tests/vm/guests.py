"""The guests of a test run, in a process beside it: what they take is mostly hidden behind the tests of this kernel.

    start(names)    when the tests are collected (conftest.py); one guest at a time, so that this machine has room left
    Beside.results  what test_guest.py waits for: nothing else is left to be run then, and two have a processor each

The process is nobody's child and has not the run's mark, or each guest would be a process that some test leaves behind.
It ends its guests when the run has ended, however that was: then nobody holds the other end of its standard input.
"""

from __future__ import annotations

import contextlib
import glob
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from tests.isolation import MARK
from tests.vm import zfs
from tests.vm.guest import REPOSITORY
from tests.vm.kernel import NAME, is_made, kernel

PREPARE = "python -m tests.vm --prepare (scripts/test) fetches and builds what is missing, and says why it cannot"
_SECONDS = 3600
_HURRY = b"h"
_PYTEST = [
    "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=600",
    "-o", "tmp_path_retention_policy=failed",  # /tmp is memory, and disk images are large
    "-p", "no:hypothesispytest",  # importing it takes half of the start, and nothing in these files uses it
]  # fmt: skip

# Emulation takes fifteen times as long: of the contract of all drivers there is what devices and datasets can break.
# One image on six drivers takes ten minutes, and four of them are this kernel's too. FUSE_AUFS_GUESTS=all has both.
_ALL = os.environ.get("FUSE_AUFS_GUESTS") == "all"
_ONE_IMAGE = ("tests/vm/test_one_image.py",) if _ALL else ()
_CONTRACT = " or ".join((
    "layer_on_a_layer", "siblings_do_not", "everything_a_file_is", "views_", "lower_directory_is_moved", "usage_leaves",
    "intermediate_snapshot", "kept_to_its_size", "thrown_away", "options_that_are", "one_of_many", "after_reopening",
    "diff_and_apply", "mounted_at_once", "neighbours", "who_is_killed",
))  # fmt: skip


class Guest(NamedTuple):
    """Test files, or patterns of such, that are run in one guest; and which tests of them when not all are."""

    tests: tuple[str, ...]
    most: str = ""
    zfs: bool = False


GUESTS = {
    "devicemapper": Guest(("tests/drivers/devicemapper/test_*.py",), f"not TestDevicemapper or {_CONTRACT}"),
    "zfs": Guest(("tests/drivers/zfs/test_*.py",), f"not TestZfs or {_CONTRACT}", zfs=True),
    "containers on every driver": Guest(("tests/vm/test_every_driver.py", *_ONE_IMAGE), zfs=True),
    "project quotas": Guest(("tests/drivers/disk/test_quota*.py",)),
    "cgroups of version 2 alone": Guest(("tests/runtime/oci/test_cgroups.py",)),
}


class Result(NamedTuple):
    """-1: it was not run, and why."""

    status: int
    output: str


def unprepared(*, with_zfs: bool) -> str:
    """Why there is no such guest, "" if there is one."""
    if not is_made(NAME):
        return f"there is no kernel for a guest: {PREPARE}"
    if with_zfs and not is_made(zfs.name(kernel())):
        return f"zfs was not built for the guest's kernel: {PREPARE}"
    return ""


class Beside:
    def __init__(self, names: Sequence[str]) -> None:
        self._left_out = {name: why for name in names if (why := unprepared(with_zfs=GUESTS[name].zfs))}
        self._logs = tempfile.mkdtemp(prefix="fuse-aufs-guests-")
        with_guests = [name for name in names if name not in self._left_out]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.vm.guests", self._logs, *with_guests], cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if name != MARK},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._process.wait()

    def results(self) -> dict[str, Result]:
        """When all of them have ended. Both a test's skip and its failure are in the output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # all have ended
            os.write(self._process.stdin.fileno(), _HURRY)
        found = {name: Result(-1, why) for name, why in self._left_out.items()}
        for line in self._process.stdout.read().decode().splitlines():
            status, _, name = line.partition(" ")
            with open(os.path.join(self._logs, name), encoding="utf-8", errors="replace") as log:
                found[name] = Result(int(status), log.read())
        return found

    def close(self) -> None:
        """End what is still running."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.read()
        self._process.stdout.close()
        shutil.rmtree(self._logs)


def main(logs: str, *names: str) -> None:
    """Write `STATUS NAME` of each guest, whose output is in the file of its name in `logs`."""
    if os.fork():
        os._exit(0)
    waiting = list(names)
    died: set[str] = set()
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    at_once, watched = 1, [0]
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                process = _boot(GUESTS[name], os.path.join(logs, name))
                running[os.pidfd_open(process.pid)] = (name, process)
            for ready in select.select([*watched, *running], [], [])[0]:
                if ready == 0:
                    if not os.read(0, 1):
                        return
                    at_once, watched = 2, [0]
                    continue
                name, process = running.pop(ready)
                os.close(ready)
                status = process.wait()
                with open(os.path.join(logs, name), encoding="utf-8", errors="replace") as log:
                    panicked = "Kernel panic" in log.read()
                # An emulated kernel can die once, by a double fault in a thread of zfs; what is tested does it again.
                if panicked and name not in died:
                    died.add(name)
                    waiting.append(name)
                else:
                    os.write(1, f"{status} {name}\n".encode())
    finally:
        for _, process in running.values():
            process.send_signal(signal.SIGINT)
            process.wait()


def _boot(guest: Guest, log: str) -> subprocess.Popen[bytes]:
    files = [name for pattern in guest.tests for name in sorted(glob.glob(pattern, root_dir=REPOSITORY))]
    assert files, f"there are no tests {guest.tests}"
    chosen = ["-k", guest.most] if guest.most and not _ALL else []
    harness = [sys.executable, "-m", "tests.vm", f"--timeout={_SECONDS}", *(["--zfs"] if guest.zfs else [])]
    with open(log, "wb") as output:
        return subprocess.Popen(
            [*harness, "--", sys.executable, *_PYTEST, *chosen, *files],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
