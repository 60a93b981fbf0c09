"""The ends of a process's streams, and that none is left open where they cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from runtime.engine.stdio import Ends

# Asks for pipes with ever more descriptors left, until there are enough.
_PIPES = """
import os, resource
from runtime.engine.stdio import pipes
lowest = os.dup(0)
os.close(lowest)
for left in range(6):
    for stdin in (True, False):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, 1 << 10))
        try:
            theirs, ends = pipes(stdin=stdin)
        except OSError:
            continue
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 10, 1 << 10))
            now = os.dup(0)
            os.close(now)
        assert (left, stdin) == (5, False), (left, stdin)
    assert now == lowest or left == 5, (left, now)
"""


def test_a_console_that_is_none_is_not_left_open() -> None:
    ours, theirs = os.pipe()
    try:
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            Ends(console=ours)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(ours)
    finally:
        os.close(theirs)


def test_pipes_are_had_all_or_none() -> None:
    run = subprocess.run([sys.executable, "-c", _PIPES], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
