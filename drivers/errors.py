"""What a storage driver refuses with.

    DriverError
    ├── NotFound        no snapshot has this name, or the parent has gone
    ├── AlreadyExists   the name is taken (keys and names share one space)
    ├── InUse           it has children, or something still has it mounted
    ├── WrongState      the snapshot is of a kind that does not allow this, or the driver is closed
    │   └── InvalidName     not a name at all
    ├── NotSupported    this driver, or the file system below it, cannot do that (a quota, for one)
    ├── TimedOut        another process held something for longer than any should
    └── Unavailable     the driver cannot work here, or its store is damaged; the text is a sentence for the user

Failures of the file system below (ENOSPC, EIO, EDQUOT …) are not wrapped: they arrive as the OSError they are.
"""

from __future__ import annotations


class DriverError(Exception):
    """The text is one line, without a final stop, and names the snapshot or the driver it is about."""


class NotFound(DriverError):
    """No snapshot has this name, or the parent has gone."""


class AlreadyExists(DriverError):
    """The name is taken."""


class InUse(DriverError):
    """The snapshot has children, or something still has it mounted."""


class WrongState(DriverError):
    """The snapshot's kind does not allow this, or the driver is closed."""


class InvalidName(WrongState):
    """Not a name that a snapshot can have."""


class NotSupported(DriverError):
    """This driver, or what it stands on here, cannot do what was asked for; the text says why."""


class TimedOut(DriverError):
    """Another process held a lock for longer than any should; the text says which lock, and which process."""


class Unavailable(DriverError):
    """The driver cannot work here; the text says why and what to do."""
