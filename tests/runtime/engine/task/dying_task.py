"""A task that dies by SIGKILL, or has the kernel's refusal, when it comes to the call that the environment names:
`MODULE[:CLASS].NAME`.

The program of runtime/engine/task with that one call exchanged; started in its place, by its path.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

CALL = "FUSE_AUFS_TEST_DIES_AT"
REFUSED = "FUSE_AUFS_TEST_REFUSED_AT"


def main() -> None:
    root = str(Path(__file__).parents[4])
    sys.path[:] = [root, *filter(None, sys.argv[1].split(os.pathsep))]
    place, _, name = os.environ[CALL if CALL in os.environ else REFUSED].rpartition(".")
    module, _, inside = place.partition(":")
    owner = import_module(module)
    owner = getattr(owner, inside) if inside else owner
    assert hasattr(owner, name)
    setattr(owner, name, die if CALL in os.environ else refuse)
    import_module("runtime.engine.task.main").main()


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "/")


if __name__ == "__main__":
    main()
