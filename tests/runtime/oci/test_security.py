"""Ways out of a container that other runtimes have had, and that are not about paths of the root (test_rootfs.py)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import ContainerError
from runtime.oci import sealed
from tests.runtime.oci.conftest import Config, process
from tests.runtime.oci.keeper import Keeper

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]


@pytest.mark.parametrize("number", range(3, 12))
def test_a_leaked_descriptor_of_the_host_is_no_working_directory(
    keeper: Keeper, config: Make, number: int, tmp_path: Path
) -> None:
    """CVE-2024-21626: a directory of the host's that the caller left open and inheritable."""
    keeper.call("leak", path=str(tmp_path))
    with pytest.raises(ContainerError, match=r"^cannot (make|enter) the working directory /proc/self/fd/"):
        keeper.run(config("ls", process__cwd=f"/proc/self/fd/{number}"))


def test_a_leaked_descriptor_does_not_reach_the_command(keeper: Keeper, config: Make, tmp_path: Path) -> None:
    for _ in range(5):
        keeper.call("leak", path=str(tmp_path))
    box = keeper.create(config("sleep", "1000"))
    waiting = {os.readlink(f"/proc/{box.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{box.pid}/fd")}
    assert str(tmp_path) not in waiting
    box.start()
    added = box.exec({**process("sleep", "1000")})
    assert len(os.listdir(f"/proc/{added.pid}/fd")) == 4
    added.start()
    assert sorted(os.listdir(f"/proc/{added.pid}/fd")) == ["0", "1", "2"]
    box.delete()
    assert (box.wait().code, added.wait().code) == (137, 137)


def test_a_working_directory_through_a_leaked_descriptor_is_refused_for_exec(
    keeper: Keeper, config: Make, tmp_path: Path
) -> None:
    box = keeper.create(config("sleep", "1000")).start()
    for _ in range(5):
        keeper.call("leak", path=str(tmp_path))
    for number in range(3, 10):
        with pytest.raises(ContainerError, match=r"^cannot enter the working directory"):
            box.exec({**process("ls"), "cwd": f"/proc/self/fd/{number}"})
    box.delete()
    assert box.wait().code == 137


def test_the_file_of_a_sealed_executable_cannot_be_written(tmp_path: Path) -> None:
    """CVE-2019-5736: /proc/PID/exe, kept open until nobody runs it, then opened for writing."""
    program = tmp_path / "program"
    shutil.copy("/bin/busybox", program)
    for seal, outcome in ((True, errno.EROFS), (False, None)):
        fd = sealed.seal(str(program)) if seal else os.open(program, os.O_RDONLY)
        pid = os.posix_spawn(f"/proc/self/fd/{fd}", ["sleep", "1000"], {})
        os.close(fd)
        exe = os.open(f"/proc/{pid}/exe", os.O_PATH)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            writable = os.open(f"/proc/self/fd/{exe}", os.O_WRONLY)
        except OSError as error:
            assert error.errno == outcome
        else:
            os.close(writable)
            assert outcome is None
        os.close(exe)


def _alone(script: str, *args: str) -> str:
    """What a single-threaded Python prints."""
    run = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_nothing_can_be_imported_once_the_process_runs() -> None:
    """A module that the child would import after the pivot would be the image's code, with the host's rights."""
    assert _alone(
        "from runtime.oci import child; child._forget_the_parent()\n"
        "try: import calendar\nexcept ImportError: print('refused')"
    ) == "refused\n"  # fmt: skip


def test_nothing_that_the_image_has_is_imported(keeper: Keeper, config: Make, rootfs: Path) -> None:
    for directory in (p for p in sys.path if p.startswith("/")):
        (rootfs / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for module in ("linecache", "traceback", "encodings/idna", "ctypes/util", "_posixsubprocess"):
            target = rootfs / directory.lstrip("/") / f"{module}.py"
            target.parent.mkdir(exist_ok=True)
            target.write_text("open('/imported', 'w')\n")
    with pytest.raises(ContainerError, match="not found in"):
        keeper.run(config("no-such-command"))
    assert keeper.run(config("true")).code == 0
    assert not (rootfs / "imported").exists()


def test_a_working_directory_outside_the_root_is_refused(tmp_path: Path) -> None:
    """CVE-2024-21626's second defence: however a process came to be there."""
    assert _alone(
        "import os, sys; from runtime.oci import child\n"
        "os.chdir('/'); os.chroot(sys.argv[1])\n"
        "try: child._enter_directory('.')\nexcept OSError: print('refused')",
        str(tmp_path),
    ) == "refused\n"  # fmt: skip


def test_a_key_of_the_callers_session_is_out_of_reach(config: Make, tmp_path: Path) -> None:
    """Keyrings are in no namespace. The key is one that only its possessors see."""
    spec = config("cat", "/proc/keys", linux__maskedPaths=[])
    out = _alone(
        "import ctypes, json, sys; from runtime.oci import container; from unionfs.linux import processes\n"
        "processes.join_new_session_keyring()\n"
        "libc, number = ctypes.CDLL(None), processes._NR_keyctl\n"
        "add_key = {250: 248, 219: 217}[number]\n"
        "key = libc.syscall(add_key, b'user', b'oci-test-key', b'secret', 6, -3); assert key > 0\n"
        "assert libc.syscall(number, 5, key, 0x3f000000) == 0  # KEYCTL_SETPERM\n"
        "print(open('/proc/keys').read().count('oci-test-key'), flush=True)\n"
        "spec = json.loads(sys.argv[1])\n"
        "c = container.create(sys.argv[2], spec, stdio=container.Stdio(0, 1, 2))\n"
        "container.start(sys.argv[2]); c.wait(); container.delete(sys.argv[2])",
        json.dumps(spec),
        str(tmp_path),
    )
    assert out.startswith("1\n") and "oci-test-key" not in out


def test_an_abstract_socket_of_the_host_is_out_of_reach(keeper: Keeper, config: Make) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0oci-test-abstract")
        out = keeper.run(config("cat", "/proc/net/unix")).out
    assert "oci-test-abstract" not in out
