"""Where the programs of the system are."""

from __future__ import annotations

import os

# Root's PATH lacks these where it comes from `su` without `-`, and they hold what drivers and networks call.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(*names: str) -> str | None:
    """The path of the first of `names` that is installed; None if none is.

    Not shutil.which(): importing that would cost every start of a container more than all of this.
    """
    for name in names:
        for directory in (*os.get_exec_path(), *_SBIN):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    return None
