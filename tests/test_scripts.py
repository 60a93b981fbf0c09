"""The two commands of the README, as far as a machine that is set up can run them: scripts/setup and scripts/demo."""

from __future__ import annotations

import glob
import os
import signal
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_DEADLINE = 120  # seconds; the demo takes less than 15 on an idle machine


@pytest.fixture(scope="module", autouse=True)
def set_up() -> None:
    """Without this check a run of the demo would install packages, or remake the .venv that the tests run in."""
    command = ["scripts/setup", "--tests", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if check.returncode:
        pytest.skip(f"this machine was not set up by scripts/setup: {check.stderr.strip()}")


def demo_directories() -> set[str]:
    return set(glob.glob("/var/tmp/fuse-aufs-demo.*"))


def test_setup_again_changes_nothing() -> None:
    stamp = os.path.join(ROOT, ".venv", "stamp")
    before = os.stat(stamp)
    again = subprocess.run(["scripts/setup", "--tests"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert os.stat(stamp).st_mtime_ns == before.st_mtime_ns


def test_no_import_hook_costs_every_command_its_time() -> None:
    code = "import sys; print([name for name in sys.modules if 'editable' in name], 'importlib.util' in sys.modules)"
    python = os.path.join(ROOT, ".venv", "bin", "python")
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout == "[] False\n"


@pytest.mark.needs("fuse", "overlay", "netns")
def test_demo_shows_the_main_job_and_leaves_nothing() -> None:
    before = demo_directories()
    demo = subprocess.run(
        ["scripts/demo"], cwd=ROOT, capture_output=True, text=True, timeout=_DEADLINE, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    assert "\x1b" not in demo.stdout, "colour is for terminals"
    lines = demo.stdout.splitlines()
    assert ".wh.removed" in lines, "the union's whiteout"
    assert "./bin/.wh.vi" in lines, "the container's whiteout"
    assert lines.count("Changed in the container") == 1
    for subject in ("overlay2", "fuse-aufs", "vfs"):
        assert any(line.startswith("copyup") and subject in line for line in lines), subject
    assert demo_directories() == before


@pytest.mark.needs("fuse", "overlay", "netns")
@pytest.mark.parametrize("moment", ["$ mkdir lower", "$ unionfs mount", "$ runtime --storage-driver", "$ python -m"])
def test_demo_interrupted_leaves_nothing(moment: str) -> None:
    """ctrl-C reaches every process of the terminal's foreground group, as here those of the session."""
    before = demo_directories()
    demo = subprocess.Popen(
        ["scripts/demo"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith(moment):
            os.killpg(demo.pid, signal.SIGINT)
            break
    rest, _ = demo.communicate(timeout=_DEADLINE)
    assert demo.returncode == 130, rest
    assert demo_directories() == before
