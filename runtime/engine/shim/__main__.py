"""`python -I runtime/engine/shim`: started by runtime/engine/start.py with a socket as descriptor 3.

Isolated from the caller's PYTHON… variables and current directory, so this package's place comes from here. Not with
-S as well: the drivers look for pyfuse3 and trio among the installed packages.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

from runtime.engine.shim.main import main

main()
