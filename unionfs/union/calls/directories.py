"""Entries of directories. There is nothing to open: see `listing`."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from unionfs.union.calls.base import Calls
from unionfs.union.listing import Entry, EntryPlus


class Directories(Calls):
    def list(self, ino: int, cookie: int, most: int) -> Sequence[Entry]:
        """At most `most` entries behind `cookie` as (name, inode number, file type, next cookie), `.` and `..` first of
        all; none at the end. No lookups are counted."""
        with self._lock:
            entries = self._listings.entries(self._stack.nodes.get(ino), cookie, most)
            self._stack.directories.trim()
            return entries

    def list_plus(self, ino: int, cookie: int, most: int) -> Sequence[EntryPlus]:
        """The same as (name, attributes, next cookie). Each entry but `.` and `..` counts one lookup: `forget` those
        that are not sent."""
        with self._lock:
            entries = self._listings.entries_plus(self._stack.nodes.get(ino), cookie, most)
            self._stack.directories.trim()
            return entries

    def fsyncdir(self, ino: int, datasync: bool) -> None:
        """fsync(2) of the directory's part in the writable branch; a directory without one has nothing to save."""
        with self._operation:
            node = self._stack.nodes.get(ino)
            if not self._stack.writable or not node.layers or not node.is_upper:
                return
            fd = os.dup(self._stack.upper(node).fd)
        try:
            self._stack.waiting.begins()
            _flush(fd)
        finally:
            os.close(fd)


def _flush(fd: int) -> None:
    """fsync a directory; some file systems do not offer it (EINVAL)."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
