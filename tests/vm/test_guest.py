"""What takes another kernel: tests that are skipped here are run in guests, which were started with the test run.

`python -m tests.vm --prepare` has fetched a kernel and built zfs before; here there is no network.
"""

from __future__ import annotations

import faulthandler
import os
import re
import subprocess
import sys

import pytest

from tests.vm.conftest import NEEDS, guests
from tests.vm.guest import REPOSITORY
from tests.vm.guests import GUESTS, Result, unprepared

pytestmark = pytest.mark.needs(*NEEDS)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> dict[str, Result]:
    faulthandler.cancel_dump_traceback_later()  # pytest's, which is for tests that hang: these have a time of their own
    return request.config.stash[guests].results()


@pytest.fixture
def a_guest() -> None:
    if why := unprepared(with_zfs=False):
        pytest.skip(why)


@pytest.mark.usefixtures("a_guest")
def test_the_command_is_run_as_it_is_given() -> None:
    """Words, output, an exit status, and who it is; nothing that it writes is seen here."""
    script = 'printf "%s|" "$0" "$@"; id -u; pwd; touch /written /tmp/written; echo error >&2; exit 7'
    words = ["two words", "'", "$HOME", "", "ü\n"]
    done = harness("sh", "-c", script, *words)
    assert done.stdout.decode() == "|".join(words) + f"|0\n{REPOSITORY}\nerror\n"
    assert (done.returncode, done.stderr) == (7, b"")
    assert not os.path.exists("/written")


@pytest.mark.usefixtures("a_guest")
def test_a_guest_that_dies_shows_its_console() -> None:
    done = harness("sh", "-c", "echo c >/proc/sysrq-trigger; sleep 600")
    assert done.returncode == 125
    assert b"Kernel panic" in done.stderr


@pytest.mark.usefixtures("a_guest")
def test_a_guest_that_takes_too_long_is_ended() -> None:
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
