"""Names."""

from __future__ import annotations

import os
from typing import Any

from unionfs.fuse import abi, reply
from unionfs.fuse.request import Request
from unionfs.serve.requests.base import Reply, Requests


class NameRequests(Requests):
    def lookup(self, r: Request) -> Reply:
        attr = self._fs.lookup(r.nodeid, r.names[0])
        if attr is None:
            return reply.no_entry(r.unique, self._keeps_for)
        return self._entry(r, attr)

    def forget(self, r: Request) -> None:
        self._forget([(r.nodeid, r.fields[0])])

    def batch_forget(self, r: Request) -> None:
        self._forget(abi.FORGET_ONE.iter_unpack(r.data))

    def _forget(self, counts: Any) -> None:
        counts = list(counts)
        if self.passthrough is not None:
            for number, _ in counts:
                self.passthrough.forget(number)
        self._fs.forget(counts)

    def mknod(self, r: Request) -> Reply:
        mode, rdev, umask = r.fields
        device = os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00)  # new_decode_dev(), linux/kdev_t.h
        mode = self._mode(r.nodeid, mode, umask)
        return self._entry(r, self._fs.mknod(r.nodeid, r.names[0], mode, device, r.uid, r.gid))

    def mkdir(self, r: Request) -> Reply:
        mode, umask = r.fields
        return self._entry(r, self._fs.mkdir(r.nodeid, r.names[0], self._mode(r.nodeid, mode, umask), r.uid, r.gid))

    def symlink(self, r: Request) -> Reply:
        return self._entry(r, self._fs.symlink(r.nodeid, r.names[0], r.names[1], r.uid, r.gid))

    def link(self, r: Request) -> Reply:
        return self._entry(r, self._fs.link(r.fields[0], r.nodeid, r.names[0]))

    def unlink(self, r: Request) -> Reply:
        self._fs.unlink(r.nodeid, r.names[0])
        return reply.ok(r.unique)

    def rmdir(self, r: Request) -> Reply:
        self._fs.rmdir(r.nodeid, r.names[0])
        return reply.ok(r.unique)

    def rename(self, r: Request) -> Reply:
        self._fs.rename(r.nodeid, r.names[0], r.fields[0], r.names[1])
        return reply.ok(r.unique)

    def rename2(self, r: Request) -> Reply:
        self._fs.rename(r.nodeid, r.names[0], r.fields[0], r.names[1], r.fields[1])
        return reply.ok(r.unique)

    def readlink(self, r: Request) -> Reply:
        return reply.data(r.unique, self._fs.readlink(r.nodeid))
