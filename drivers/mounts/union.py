"""Our own union as a detached mount, served by a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import unionfs
from drivers.errors import Unavailable


def branches(paths: Sequence[tuple[str, str]]) -> str:
    """The option of a "unionfs" mount for branches (path, permission), top first."""
    return "br=" + ":".join(f"{_escape(path, ':=,')}={permission}" for path, permission in paths)


def union_tree(options: Sequence[str]) -> tuple[int, int]:
    """Run `unionfs mount`, which returns when the mount answers; the server is a process of its own.

    Gives the root of the detached mount (O_PATH), and a pidfd of the server. Raises Unavailable with what it said.

    With -P the working directory is not searched for modules; the package is found where ours was, so an editable
    install, a source tree and a wheel all do.
    """
    import socket  # late: half of what importing this module would cost, and other drivers do not need it
    import subprocess

    from unionfs.transport import delivery

    where = os.path.dirname(os.path.dirname(os.path.abspath(unionfs.__file__)))
    path = os.pathsep.join(filter(None, [where, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "unionfs", "mount", "-o", ",".join(options), "--hand-over"]
    # A file, not a pipe: a pipe's end would come when the server, which goes on, lets it.
    output = os.memfd_create("unionfs-mount")
    ours, theirs = socket.socketpair()
    with ours:
        try:
            with theirs:
                code = subprocess.call(
                    [*command, str(theirs.fileno())], env={**os.environ, "PYTHONPATH": path},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[theirs.fileno()],
                )  # fmt: skip
            lines = os.pread(output, 65536, 0).decode(errors="replace").strip().splitlines()
        finally:
            os.close(output)
        if code:
            raise Unavailable(lines[-1].removeprefix("unionfs: ") if lines else f"unionfs mount ended with {code}")
        return delivery.receive(ours)


def _escape(text: str, special: str) -> str:
    return "".join("\\" + c if c in special or c == "\\" else c for c in text)
