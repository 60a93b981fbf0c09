"""The rows of a metadata store, and a transaction over them: what the layer graph allows.

    committed ◀── parent ── committed ◀── parent ── active or view

A row is a snapshot. Its number is given once and for all; a parent is always committed, and was numbered earlier.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from drivers.api import Info, Kind, Usage
from drivers.errors import AlreadyExists, DriverError, InUse, InvalidName, NotFound, WrongState

_SELECT = """SELECT s.id, s.name, ifnull(p.name, ''), s.kind, s.labels, s.created, s.updated, s.inodes, s.size,
                    s.quota, s.volatile
             FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent """

# Ids from the snapshot itself down to the one without a parent.
_LINE = """WITH RECURSIVE line(id, depth) AS (
               SELECT ?, 0 UNION ALL
               SELECT s.parent, depth + 1 FROM line JOIN snapshots s ON s.id = line.id WHERE s.parent IS NOT NULL)
           SELECT id FROM line ORDER BY depth"""

_NAME = re.compile(r"[0-9A-Za-z][!-.0-~]{0,254}")

# bytes are left out: nothing in the graph is one, and a driver can keep text.
Value = int | float | str | None


class Record(NamedTuple):
    """One row: `id` is the number by which directories and devices are named; `usage` is None until it is committed."""

    id: int
    info: Info
    usage: Usage | None


def check_name(name: str) -> None:
    """Raise InvalidName unless `name` can be a snapshot's: see drivers.api, "What the arguments are called"."""
    if not _NAME.fullmatch(name):
        raise InvalidName(f"{name!r} cannot name a snapshot: 1 to 255 printable ASCII characters without space and /")


class Transaction:
    """The graph as one transaction sees it. Valid inside the `with` of Store.read() or Store.write()."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> list[tuple[Value, ...]]:
        """Run one statement, on the driver's own tables or to read the graph, and give its rows."""
        return self._connection.execute(sql, parameters).fetchall()

    def get(self, name: str) -> Record:
        """Raises NotFound."""
        rows = self.execute(_SELECT + "WHERE s.name = ?", (name,))
        if not rows:
            raise NotFound(f"no snapshot is named {name}")
        return _record(rows[0])

    def walk(self) -> list[Record]:
        """All records, parents before children: a parent was committed, hence numbered, before its child."""
        return [_record(row) for row in self.execute(_SELECT + "ORDER BY s.id")]

    def ids(self) -> set[int]:
        return {row[0] for row in self._connection.execute("SELECT id FROM snapshots")}

    def last_id(self) -> int:
        """The greatest id that was ever given, 0 if none was (sqlite.org/autoinc.html)."""
        rows = self.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'")
        return int(str(rows[0][0])) if rows else 0

    def mark(self, name: str) -> str | None:
        """What set_mark() has noted."""
        rows = self.execute("SELECT value FROM marks WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def set_mark(self, name: str, value: str) -> None:
        """Note that something bears the store's identity, and what has to be known to find it there."""
        self.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def ancestors(self, record: Record) -> list[int]:
        """The ids below a snapshot, its parent first."""
        return [row[0] for row in self._connection.execute(_LINE, (record.id,))][1:]

    def parent_line(self, parent: str) -> list[int]:
        """The ids of a tree that a child of `parent` stands on, nearest first; [] for "".

        Raises NotFound, or WrongState if `parent` is not committed.
        """
        if not parent:
            return []
        record = self.get(parent)
        if record.info.kind is not Kind.COMMITTED:
            raise WrongState(f"{parent} is {_article(record.info.kind)}; only a committed snapshot can be a parent")
        return [record.id, *self.ancestors(record)]

    def create(
        self, key: str, parent: str, kind: Kind, labels: Mapping[str, str], *, quota: int = 0, volatile: bool = False
    ) -> int:
        """Add an active snapshot or a view, and give its id. Raises AlreadyExists, and as parent_line()."""
        self.check_free(key)
        line = self.parent_line(parent)
        now = time.time_ns()
        cursor = self._connection.execute(
            """INSERT INTO snapshots (name, parent, kind, labels, created, updated, quota, volatile)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
            (key, line[0] if line else None, kind.value, _dump(labels), now, now, quota, volatile),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def check_free(self, name: str) -> None:
        """Raises InvalidName or AlreadyExists."""
        check_name(name)
        if self.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)):
            raise AlreadyExists(f"a snapshot named {name} exists")

    def get_mountable(self, key: str) -> Record:
        """Raises NotFound, or WrongState for a committed snapshot."""
        record = self.get(key)
        if record.info.kind is Kind.COMMITTED:
            raise WrongState(f"{key} is committed and never mounted itself: make a view of it")
        return record

    def get_active(self, key: str) -> Record:
        """Raises NotFound, or WrongState for a view or a committed snapshot."""
        record = self.get(key)
        if record.info.kind is not Kind.ACTIVE:
            raise WrongState(f"{key} is {_article(record.info.kind)}; only an active snapshot can be committed")
        return record

    def commit(self, name: str, key: str, usage: Usage, labels: Mapping[str, str]) -> None:
        """Turn active `key` into committed `name`. Raises as get_active() and check_free()."""
        record = self.get_active(key)
        self.check_free(name)
        now = time.time_ns()
        self.execute(
            "UPDATE snapshots SET name=?, kind=?, labels=?, created=?, updated=?, inodes=?, size=? WHERE id=?",
            (name, Kind.COMMITTED.value, _dump(labels), now, now, usage.inodes, usage.size, record.id),
        )

    def update(self, info: Info) -> Record:
        """Replace the labels. Raises NotFound, or WrongState if `info` differs in what cannot change."""
        record = self.get(info.name)
        if (info.parent, info.kind) != (record.info.parent, record.info.kind):
            raise WrongState(f"{info.name}: parent and kind cannot be changed")
        self.execute(
            "UPDATE snapshots SET labels=?, updated=? WHERE id=?", (_dump(info.labels), time.time_ns(), record.id)
        )
        return self.get(info.name)

    def remove(self, name: str) -> Record:
        """Delete the row and give what it was. Raises NotFound, or InUse while it is a parent."""
        record = self.get(name)
        children = self.execute("SELECT name FROM snapshots WHERE parent=? LIMIT 2", (record.id,))
        if children:
            others = " and others" if len(children) > 1 else ""
            raise InUse(f"{name} is the parent of {children[0][0]}{others}")
        self.execute("DELETE FROM snapshots WHERE id=?", (record.id,))
        return record


def _record(row: Sequence[Value]) -> Record:
    number, name, parent, kind, labels, created, updated, inodes, size, quota, volatile = row
    assert isinstance(number, int) and isinstance(labels, str)
    assert isinstance(created, int) and isinstance(updated, int) and isinstance(quota, int)
    info = Info(str(name), str(parent), Kind(kind), json.loads(labels), created, updated, quota, bool(volatile))
    usage = Usage(inodes, size) if isinstance(inodes, int) and isinstance(size, int) else None
    return Record(number, info, usage)


def _dump(labels: Mapping[str, str]) -> str:
    for key, value in labels.items():
        if not (isinstance(key, str) and isinstance(value, str) and key):
            raise DriverError(f"label {key!r}={value!r}: keys and values are text, and keys are not empty")
    return json.dumps(dict(labels), ensure_ascii=False)


def _article(kind: Kind) -> str:
    return {Kind.ACTIVE: "an active snapshot", Kind.VIEW: "a view", Kind.COMMITTED: "committed"}[kind]
