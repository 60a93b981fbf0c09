"""The files of `.wh..wh.plnk/`, to which hard links lead in layers that docker of 2013 made of AUFS branches.

AUFS cannot link a file of a lower branch, and so keeps one more name of its copy there. The directory is not part of
the tree. While an archive is extracted its files lie in a directory of the root that no archive can name, nor lead a
link to; then that is removed, and a file that was linked to keeps its other names. So there is one copy of each,
whatever becomes of those names.
"""

from __future__ import annotations

import os


def hidden_name() -> bytes:
    """A name for that directory, one that no archive can have guessed."""
    return b".pseudo-links-" + os.urandom(16).hex().encode()
