"""What is given with -e is the command's alone: no process of ours shows it, in a container or on the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Runtime

pytestmark = pytest.mark.needs("root")

# Looks into each process as long as it can. The brackets are for it not to find itself.
_LOOK = """
until [ -e /tmp/enough ]; do
    cat /proc/[0-9]*/cmdline; [ $1 = environ ] && cat /proc/[0-9]*/environ
done 2>/dev/null | grep -a -o "[s]ecret-$1" | sort -u
"""


def test_no_process_in_the_container_shows_it(runtime: Runtime) -> None:
    """What a command has in its environment its user may see, once it is the command; the rest of the caller's
    environment nobody, nor what is on the caller's command line."""
    name = runtime("run", "-d", "--network", "none", "box", "sh", "-c", "sleep 600").strip()
    try:
        watchers = [
            runtime.popen("exec", "-u", user, name, "sh", "-c", _LOOK, "look", what)
            for user in ("0", "1000")
            for what in ("environ", "argument")
        ]
        env = {"NOT_GIVEN": "secret-environ", "GIVEN": "secret-argument"}
        for user in ("0", "1000") * 12:
            runtime("exec", "-u", user, "-e", "GIVEN", "-e", "A=secret-argument", name, "true", env=env)
        runtime("exec", name, "touch", "/tmp/enough")
        assert [watcher.communicate(timeout=PATIENCE) for watcher in watchers] == [(b"", b"")] * 4
    finally:
        runtime("rm", "-f", name)


@pytest.mark.parametrize("verb", ["exec", "run"])
def test_no_process_on_the_host_goes_on_showing_it(runtime: Runtime, verb: str, tmp_path: Path) -> None:
    """Once the command runs, the caller's own command line has it no more, nor has that of any process that it has
    started."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = ["-e", "A=secret-value", "-eB=secret-value-two", "--env=C=secret-value"]
    command = ["sh", "-c", "echo $A $B $C; exec sleep 600"]
    name = runtime("run", "-d", "--network", "none", "box", "sleep", "600").strip()
    try:
        where = ["--network", "none", "--name", "shown", "box"] if verb == "run" else [name]
        process = runtime.popen(verb, *words, *where, *command)
        assert process.stdout
        assert process.stdout.readline() == b"secret-value secret-value-two secret-value\n"
        shown = subprocess.run(
            "cat /proc/[0-9]*/cmdline | grep -a -o '[s]ecret-value'", shell=True, capture_output=True, text=True
        ).stdout
        assert shown == ""
        own = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"A=************\0" in own and (b"shown\0" if verb == "run" else name.encode()) in own
        process.kill()
        process.communicate(timeout=PATIENCE)
    finally:
        runtime.call("rm", "-f", "shown")
        runtime("rm", "-f", name)
