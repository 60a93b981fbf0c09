"""The lock of a host's network."""

from __future__ import annotations

import subprocess

import pytest

from runtime.engine.networks import links
from runtime.errors import NetworkError


@pytest.mark.needs("root")
def test_a_user_who_locks_the_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import fcntl, os; fcntl.flock(os.open('/proc/self/ns/net', 0), 2); print(flush=True); os.read(0, 1)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["/usr/bin/python3", "-c", code], **pipes, user=65534, group=65534) as user:  # type: ignore[call-overload]
        user.stdout.readline()
        monkeypatch.setattr(links, "_PATIENCE", 0.01)
        with pytest.raises(NetworkError, match=f"network namespace .*, which process {user.pid} "), links.locked():
            pass
        user.communicate(b"\n")
    with links.locked():
        pass
