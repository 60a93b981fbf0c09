"""A shim that dies by SIGKILL when it comes to the call that the environment names: `MODULE[:CLASS].NAME`.

The program of runtime/engine/shim with that one call exchanged; started in its place, by its path.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

CALL = "FUSE_AUFS_TEST_DIES_AT"


def main() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path[:] = [root, *filter(None, sys.argv[1].split(os.pathsep))]
    place, _, name = os.environ[CALL].rpartition(".")
    module, _, inside = place.partition(":")
    owner = import_module(module)
    owner = getattr(owner, inside) if inside else owner
    assert hasattr(owner, name)
    setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    import_module("runtime.engine.shim.main").main()


if __name__ == "__main__":
    main()
