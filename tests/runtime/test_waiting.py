"""A verb that has to wait for another process says for whom, and can be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from drivers.disk.locks import locked
from runtime.images.unpack import LOCK
from tests.runtime.conftest import Runtime


def ends_while_waiting(process: subprocess.Popen[bytes], number: int) -> tuple[str, int]:
    """What it says first, and the exit code when it then gets the signal; it complains of nothing else."""
    assert process.stderr is not None and process.stdout is not None and process.stdin is not None
    said = process.stderr.readline().decode()
    process.send_signal(number)
    code = process.wait()
    assert process.stderr.read() == b""
    for stream in (process.stderr, process.stdout, process.stdin):
        stream.close()
    return said, code


@pytest.mark.needs("root")
def test_behind_another_unpacking(tmp_path: Path, rootfs_tar: Path, deadline: None) -> None:
    """`run` of an image that its driver has not unpacked yet: nothing is left of it."""
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "vfs")
    runtime("import", rootfs_tar, "it:1")
    me = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
    with locked(str(tmp_path / "root/images" / LOCK), purpose="unpacking busybox:1"):
        waiting = [
            (runtime.on("overlay2").popen("run", "--network", "none", "it:1", "true"), signal.SIGTERM),
            (runtime.on("overlay2").popen("run", "--network", "none", "it:1", "true"), signal.SIGINT),
        ]
        for process, number in waiting:
            said, code = ends_while_waiting(process, number)
            assert said == f"runtime: waiting for {me}, which is unpacking busybox:1\n"
            assert code == 128 + number
    assert runtime.ids() == []
