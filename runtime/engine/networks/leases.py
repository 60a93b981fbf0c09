"""Leases: which container has which address of the bridge's subnet, in sqlite.

A lease is given before the link is made and given back after the link is gone, so a process that is killed between
leaves a lease too many, never a link without one; `stale` finds those. Every method is one transaction: processes
may share the file. A `Leases` stays in its thread and does not cross a fork.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from itertools import chain
from types import TracebackType
from typing import NamedTuple

from runtime.errors import NetworkError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS lease (
    container TEXT PRIMARY KEY,
    address INTEGER NOT NULL UNIQUE,
    port TEXT NOT NULL,
    pid INTEGER NOT NULL,
    netns INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS network (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    bridge TEXT NOT NULL,
    last INTEGER NOT NULL
);
INSERT OR IGNORE INTO network VALUES (1, '', 0);
"""


class Lease(NamedTuple):
    container: str
    address: IPv4Address
    port: str  # the host's end of its link: the bridge's name and the number of the address in the subnet
    pid: int
    netns: int  # inode of the namespace: with the pid it names the holder though pids are used again

    def is_held(self) -> bool:
        try:
            return os.stat(f"/proc/{self.pid}/ns/net").st_ino == self.netns
        except OSError:
            return False


class Leases:
    """The leases in the sqlite file at `path`, made when missing."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            # WAL with synchronous=NORMAL outlives kill -9 of any process; a power cut ends what was leased anyhow.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @property
    def bridge(self) -> str:
        """The bridge that was made for these leases last; "" if none was."""
        (name,) = self._db.execute("SELECT bridge FROM network").fetchone()
        return str(name)

    @bridge.setter
    def bridge(self, name: str) -> None:
        self._db.execute("UPDATE network SET bridge = ?", (name,))

    def acquire(self, container: str, subnet: IPv4Network, *, bridge: str, pid: int, netns: int) -> Lease:
        """The container's lease in `subnet`: the one that it has, else the next free one after the last given.

        Going round keeps an address that was just given back out of neighbours' ARP caches. The first address is the
        gateway's. NetworkError when all are taken.
        """
        base, end = int(subnet.network_address), int(subnet.broadcast_address)
        with self._transaction():
            held = self.get(container)
            number = int(held.address) if held and held.address in subnet else self._next(base + 2, end)
            if number is None:
                raise NetworkError(f"all {max(end - base - 2, 0)} addresses of {subnet} are taken: remove a container")
            lease = Lease(container, IPv4Address(number), f"{bridge}v{number - base}", pid, netns)
            self._db.execute("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?)", (container, number, *lease[2:]))
        return lease

    def _next(self, first: int, end: int) -> int | None:
        taken = {address for (address,) in self._db.execute("SELECT address FROM lease")}
        (last,) = self._db.execute("SELECT last FROM network").fetchone()
        after = min(max(last + 1, first), end)
        number = next((n for n in chain(range(after, end), range(first, after)) if n not in taken), None)
        if number is not None:
            self._db.execute("UPDATE network SET last = ?", (number,))
        return number

    def release(self, container: str) -> None:
        """Give the container's address back, if it has one."""
        self._db.execute("DELETE FROM lease WHERE container = ?", (container,))

    def get(self, container: str) -> Lease | None:
        row = self._db.execute("SELECT * FROM lease WHERE container = ?", (container,)).fetchone()
        return _lease(row) if row else None

    def all(self) -> list[Lease]:
        return [_lease(row) for row in self._db.execute("SELECT * FROM lease ORDER BY address")]

    def others(self, container: str) -> bool:
        """Whether any other container has a lease."""
        return bool(self._db.execute("SELECT 1 FROM lease WHERE container != ? LIMIT 1", (container,)).fetchone())

    def stale(self, live: Collection[str]) -> list[str]:
        """Containers that are not in `live` and whose network namespace is gone.

        The second condition saves the container that was attached after its caller listed the live ones.
        """
        return [lease.container for lease in self.all() if lease.container not in live and not lease.is_held()]


def _lease(row: tuple[str, int, str, int, int]) -> Lease:
    container, address, port, pid, netns = row
    return Lease(container, IPv4Address(address), port, pid, netns)
