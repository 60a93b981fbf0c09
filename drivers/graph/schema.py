"""The tables of a store: made in a new file, made from those of an older version, and told from another driver's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from drivers.errors import Unavailable
from drivers.graph.transaction import Transaction

VERSION = 3  # of the format, as PRAGMA user_version

_MARKS = "CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
_SCHEMA = (
    # The identity is random, and is written on everything that the store describes (`marks`).
    "CREATE TABLE store (driver TEXT NOT NULL, identity TEXT NOT NULL)",
    # AUTOINCREMENT: an id that was ever committed is not given again, so a directory that is being deleted under its
    # id cannot be taken for a new snapshot's.
    """CREATE TABLE snapshots (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        name    TEXT NOT NULL UNIQUE,
        parent  INTEGER REFERENCES snapshots(id) ON DELETE RESTRICT,
        kind    TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
        labels  TEXT NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        inodes  INTEGER,
        size    INTEGER,
        quota   INTEGER NOT NULL DEFAULT 0,
        volatile INTEGER NOT NULL DEFAULT 0,
        CHECK (kind = 'committed' OR (inodes IS NULL AND size IS NULL)))""",
    "CREATE INDEX snapshots_by_parent ON snapshots(parent)",
    "CREATE TABLE options (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    _MARKS,
)
_CHANCE = "lower(hex(randomblob(16)))"

# The statements that turn a store of each older version into one of the next.
_UPGRADES = {
    1: (
        "ALTER TABLE snapshots ADD COLUMN quota INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE snapshots ADD COLUMN volatile INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE options (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
    2: (
        "ALTER TABLE store ADD COLUMN identity TEXT NOT NULL DEFAULT ''",
        f"UPDATE store SET identity = {_CHANCE}",
        _MARKS,
    ),
}


def settle(
    transaction: Transaction, path: str, driver: str, schema: Sequence[str], has_content: Callable[[], bool]
) -> str:
    """Bring the store at `path` to what this version reads, in a write transaction; the arguments are Store's. Gives
    its identity. Raises Unavailable for a store that was lost, is of a newer version, or is another driver's.
    """
    [(version,)] = transaction.execute("PRAGMA user_version")
    assert isinstance(version, int)
    if version == 0:
        if has_content():
            raise Unavailable(
                f"{path} is missing or empty, but there are layers beside it: restore it from a backup, "
                f"or remove {os.path.dirname(path)} to begin anew without them"
            )
        for statement in (*_SCHEMA, *schema):
            transaction.execute(statement)
        transaction.execute(f"INSERT INTO store VALUES (?, {_CHANCE})", (driver,))
        transaction.execute(f"PRAGMA user_version = {VERSION}")
    elif version in _UPGRADES:
        for older in range(version, VERSION):
            for statement in _UPGRADES[older]:
                transaction.execute(statement)
        transaction.execute(f"PRAGMA user_version = {VERSION}")
    elif version != VERSION:
        raise Unavailable(f"{path} has format {version}; this version reads {VERSION}")
    [(owner, identity)] = transaction.execute("SELECT driver, identity FROM store")
    if owner != driver:
        raise Unavailable(f"{path} belongs to the driver {owner}, not {driver}: give each its own root")
    return str(identity)
