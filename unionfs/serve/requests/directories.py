"""Directories. There are no open ones: a listing goes on from any cookie."""

from __future__ import annotations

from unionfs.fuse import abi, reply
from unionfs.fuse.dirents import DirectoryReply
from unionfs.fuse.request import Request
from unionfs.serve.requests.base import Reply, Requests

# What an entry takes in a listing, with a name of usual length: a batch of so many bytes fills the buffer, or nearly.
_ENTRY_BYTES = 40
_ENTRY_PLUS_BYTES = 176


class DirectoryRequests(Requests):
    def readdir(self, r: Request) -> Reply:
        _, offset, size = r.fields[:3]
        size = min(size, self._longest)
        listing = DirectoryReply(r.unique, size)
        for name, ino, mode, following in self._fs.list(r.nodeid, offset, size // _ENTRY_BYTES):
            if not listing.add(name, ino, mode, following):
                break
        return listing.message()

    def readdirplus(self, r: Request) -> Reply:
        _, offset, size = r.fields[:3]
        size = min(size, self._longest)
        listing = DirectoryReply(r.unique, size)
        add_plus = listing.add_plus
        unsent: list[tuple[bytes, int]] = []
        for name, attr, following in self._fs.list_plus(r.nodeid, offset, max(1, size // _ENTRY_PLUS_BYTES)):
            ino, nlink, st, number = attr
            if unsent or not add_plus(
                name, number, ino, nlink, st, following, self._keeps_for, self._attr_valid(number, attr)
            ):
                unsent.append((name, number))
        # The kernel counts a lookup for each entry that it gets but these two (fs/fuse/readdir.c).
        self._fs.forget((number, 1) for name, number in unsent if name not in (b".", b".."))
        return listing.message()

    def fsyncdir(self, r: Request) -> Reply:
        self._fs.fsyncdir(r.nodeid, bool(r.fields[1] & abi.FUSE_FSYNC_FDATASYNC))
        return reply.ok(r.unique)
