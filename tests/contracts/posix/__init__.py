"""What any POSIX file system of Linux does: a table of cases, run on many subjects.

A case is a function of the path of its own directory, in which its starting tree lies. The subjects differ in where
that tree came from: a plain directory, or a union's upper branch, lower branch, both, or re-made over whiteouts.
"""

from tests.contracts.posix.case import CASES, FRESH, Case

# Importing a module puts its cases into the table.
from tests.contracts.posix import (  # isort: skip  # noqa: F401
    acl,
    data,
    directories,
    links,
    metadata,
    names,
    open_unlinked,
    permissions,
    renames,
    special,
    xattrs,
)

__all__ = ["CASES", "FRESH", "Case"]
