"""The command `unionfs` as root and others give it, in a working directory of a test's (conftest.py: `place`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from unionfs.linux import mounts

UNIONFS = [sys.executable, "-m", "unionfs"]
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

# A /dev of its own, in a mount namespace of its own.
BARE_DEV = "mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && "


def bare_dev(command: str = "") -> list[str]:
    return ["unshare", "--mount", "sh", "-c", f'{BARE_DEV}{command}exec "$@"', "sh"]


def run(*arguments: str, prefix: Sequence[str] = ()) -> tuple[int, str]:
    done = subprocess.run([*prefix, *UNIONFS, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def refused(*arguments: str, code: int = 1, prefix: Sequence[str] = ()) -> str:
    """Run it, see it refused in one line, and find the branches and the mount point as they were."""
    status, said = run(*arguments, prefix=prefix)
    assert status == code, said
    assert said.startswith("unionfs: "), said
    assert said.count("\n") == 1, said
    assert said.endswith("\n")
    assert os.listdir("up") == []
    assert os.listdir("low") == ["file"]
    assert not [p.target for p in mounts.mountinfo() if p.fstype == "fuse.unionfs" and p.target.startswith(os.getcwd())]
    return said
