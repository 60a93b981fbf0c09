"""What takes another kernel: tests that are skipped here are run in guests, two at once, all in the first set-up.

`python -m tests.vm --prepare` has fetched a kernel and built zfs before; here there is no network.
"""

from __future__ import annotations

import faulthandler
import glob
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.vm import zfs
from tests.vm.guest import REPOSITORY
from tests.vm.kernel import NAME, is_made, kernel

pytestmark = pytest.mark.needs("root", *(f"program:{name}" for name in ("qemu-system-x86_64", "cpio", "depmod")))

_SECONDS = 1800
_PREPARE = "python -m tests.vm --prepare (scripts/test) fetches and builds what is missing, and says why it cannot"
_AT_ONCE = 2
_PYTEST = [
    "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=600",
    "-o", "tmp_path_retention_policy=failed",  # /tmp is memory, and disk images are large
    "-p", "no:hypothesispytest",  # importing it takes half of the start, and nothing in these files uses it
]  # fmt: skip


# Emulation takes fifteen times as long. FUSE_AUFS_GUESTS=some leaves of the contract of all drivers only what devices
# and datasets can break.
_MOST = os.environ.get("FUSE_AUFS_GUESTS") == "some"
# Ten minutes of emulation for one image on six drivers: FUSE_AUFS_GUESTS=all. The four of this kernel are run beside.
_ONE_IMAGE = ("tests/vm/test_one_image.py",) if os.environ.get("FUSE_AUFS_GUESTS") == "all" else ()
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
    "devicemapper": Guest(("tests/drivers/test_devicemapper*.py",), f"not TestDevicemapper or {_CONTRACT}"),
    "zfs": Guest(("tests/drivers/test_zfs.py",), f"not TestZfs or {_CONTRACT}", zfs=True),
    "project quotas": Guest(("tests/drivers/test_*quota*.py",)),
    "cgroups of version 2 alone": Guest(("tests/runtime/oci/test_cgroups.py",)),
    "containers on every driver": Guest(("tests/vm/test_every_driver.py", *_ONE_IMAGE), zfs=True),
}


class Result(NamedTuple):
    status: int
    output: str


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    """Of those guests whose tests were selected. Both a test's skip and its failure are in the text."""
    faulthandler.cancel_dump_traceback_later()  # pytest's, which is for tests that hang: these have a time of their own
    selected = [
        name for name in GUESTS
        if any(item.nodeid.endswith(f"[{name}]") for item in request.session.items if item.path == request.path)
    ]  # fmt: skip
    made = prepared(any(GUESTS[name].zfs for name in selected))
    logs = tmp_path_factory.mktemp("guests")
    waiting = [name for name in selected if not (GUESTS[name].zfs and made)]
    done = {name: Result(-1, made) for name in selected if name not in waiting}
    died: set[str] = set()
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                name = waiting.pop(0)
                process = start(GUESTS[name], logs / name)
                running[os.pidfd_open(process.pid)] = (name, process)
            for pidfd in select.select(list(running), [], [])[0]:
                name, process = running.pop(pidfd)
                os.close(pidfd)
                done[name] = Result(process.wait(), (logs / name).read_text(errors="replace"))
                # An emulated kernel can die once, by a double fault in a thread of zfs; what is tested does it again.
                if "Kernel panic" in done[name].output and name not in died:
                    died.add(name)
                    waiting.append(name)
        yield done
    finally:
        for pidfd, (_, process) in running.items():
            process.send_signal(signal.SIGINT)
            process.wait()
            os.close(pidfd)


def prepared(with_zfs: bool) -> str:
    """Why zfs cannot be had, "" if it can. Skips without a kernel."""
    if not is_made(NAME):
        pytest.skip(f"there is no kernel for a guest: {_PREPARE}")
    if with_zfs and not is_made(zfs.name(kernel())):
        return f"zfs was not built for the guest's kernel: {_PREPARE}"
    return ""


def start(guest: Guest, log: Path) -> subprocess.Popen[bytes]:
    files = [name for pattern in guest.tests for name in sorted(glob.glob(pattern, root_dir=REPOSITORY))]
    assert files, f"there are no tests {guest.tests}"
    select = ["-k", guest.most] if guest.most and _MOST else []
    harness = [sys.executable, "-m", "tests.vm", f"--timeout={_SECONDS}", *(["--zfs"] if guest.zfs else [])]
    with open(log, "wb") as output:
        return subprocess.Popen(
            [*harness, "--", sys.executable, *_PYTEST, *select, *files],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


def test_the_command_is_run_as_it_is_given() -> None:
    """Words, output, an exit status, and who it is; nothing that it writes is seen here."""
    prepared(False)
    script = 'printf "%s|" "$0" "$@"; id -u; pwd; touch /written /tmp/written; echo error >&2; exit 7'
    words = ["two words", "'", "$HOME", "", "ü\n"]
    done = harness("sh", "-c", script, *words)
    assert done.stdout.decode() == "|".join(words) + f"|0\n{REPOSITORY}\nerror\n"
    assert (done.returncode, done.stderr) == (7, b"")
    assert not os.path.exists("/written")


def test_a_guest_that_dies_shows_its_console() -> None:
    prepared(False)
    done = harness("sh", "-c", "echo c >/proc/sysrq-trigger; sleep 600")
    assert done.returncode == 125
    assert b"Kernel panic" in done.stderr


def test_a_guest_that_takes_too_long_is_ended() -> None:
    prepared(False)
    done = harness("sleep", "600", seconds=1)
    assert done.returncode == 124
    assert b"took too long" in done.stderr


def harness(*command: str, seconds: float = 120) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "tests.vm", f"--timeout={seconds}", "--", *command]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=4 * 120)


@pytest.mark.parametrize("name", GUESTS)
def test_in_a_guest(name: str, results: dict[str, Result]) -> None:
    status, output = results[name]
    if status < 0:
        pytest.skip(output)
    assert status == 0, f"in the guest:\n{output}"
    assert re.search(r"^\d+ passed", output.splitlines()[-1]), f"nothing was tested in the guest:\n{output}"
