"""`python -I -S runtime/engine/task PATH`: started by runtime/engine/spawn.py with a socket as descriptor 3.

PATH is the caller's sys.path. To have the interpreter find it again (site.py, with what a virtual environment adds to
it) would take longer than all that is imported here.
"""

from __future__ import annotations

import os
import sys

root = os.path.dirname(os.path.dirname(os.path.dirname(sys.path[0])))
sys.path[:] = [root, *filter(None, sys.argv[1].split(os.pathsep))]

from runtime.engine.task.main import main  # noqa: E402 (the path comes first)

main()
