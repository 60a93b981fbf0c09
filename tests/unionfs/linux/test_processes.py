"""What is said of other processes (unionfs/linux/processes.py)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from pathlib import Path

import pytest

from unionfs.linux import processes

BUSY = ["sh", "-c", "while kill -0 $$; do :; done"]
PTRACE_ATTACH, PTRACE_DETACH = 16, 17


def test_stopped_by_a_signal() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            assert not processes.is_stopped(child.pid)
            os.kill(child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            assert processes.is_stopped(child.pid)
        finally:
            child.kill()
    assert not processes.is_stopped(child.pid)


@pytest.mark.needs("ptrace")
def test_stopped_by_a_debugger() -> None:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            assert ptrace(PTRACE_ATTACH, child.pid, None, None) == 0
            os.waitpid(child.pid, 0)
            assert processes.is_stopped(child.pid)
            assert ptrace(PTRACE_DETACH, child.pid, None, None) == 0
            assert not processes.is_stopped(child.pid)
        finally:
            child.kill()


@pytest.mark.needs("ptrace", "program:strace")
def test_a_process_whose_calls_are_traced_goes_on() -> None:
    with subprocess.Popen(["strace", "-o", "/dev/null", *BUSY], start_new_session=True) as tracer:
        try:
            children = Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children")
            while not (traced := children.read_text().split()):
                pass
            assert not any(processes.is_stopped(int(traced[0])) for _ in range(300))
        finally:
            os.killpg(tracer.pid, signal.SIGKILL)
