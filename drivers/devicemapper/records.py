"""The driver's two tables, in the store of the layer graph: which thin device is what, and how far the pool has come.

    thin_pool       one row, once there is a pool: its state, and the transaction id that it should have
    thin_devices    a row for each thin number in use, from before it is made until after it is deleted

A role says how far a device is: "creating" (it may be in the pool or not), "base", "layer" (the snapshot's with that
id), "removing" (nobody's any more, and perhaps still in the pool or open somewhere).
"""

from __future__ import annotations

from typing import NamedTuple

from drivers.errors import Unavailable
from drivers.graph.transaction import Transaction, Value

SCHEMA = (
    """CREATE TABLE thin_pool (
        one            INTEGER PRIMARY KEY CHECK (one = 1),
        state          TEXT NOT NULL CHECK (state IN ('new', 'down', 'up')),
        transaction_id INTEGER NOT NULL)""",
    # Deferred: the graph deletes the snapshot's row first, and the device's becomes "removing" in the same transaction.
    """CREATE TABLE thin_devices (
        device   INTEGER PRIMARY KEY CHECK (device BETWEEN 1 AND 16777215),
        role     TEXT NOT NULL CHECK (role IN ('creating', 'base', 'layer', 'removing')),
        snapshot INTEGER UNIQUE REFERENCES snapshots(id) DEFERRABLE INITIALLY DEFERRED,
        sectors  INTEGER NOT NULL,
        mapped   INTEGER,
        inodes   INTEGER,
        uuid     TEXT,
        CHECK ((role = 'layer') = (snapshot IS NOT NULL)))""",
)

_SELECT = "SELECT device, role, snapshot, sectors, mapped, inodes, uuid FROM thin_devices "


class ThinDevice(NamedTuple):
    """`sectors` is its virtual size. `mapped` (bytes) and `inodes` are counted when it stops changing: of the base and
    of committed layers, None for others. `uuid` is the base's, in hexadecimal."""

    device: int
    role: str
    snapshot: int | None
    sectors: int
    mapped: int | None
    inodes: int | None
    uuid: str | None


class PoolRow(NamedTuple):
    """`state` is "new" while nothing has ever been in it, and "up" from before it is activated until after it is shut
    down: a pool that is "up" and not active has crashed."""

    state: str
    transaction_id: int


def pool(transaction: Transaction) -> PoolRow | None:
    for state, number in transaction.execute("SELECT state, transaction_id FROM thin_pool"):
        assert isinstance(number, int)
        return PoolRow(str(state), number)
    return None


def renew_pool(transaction: Transaction) -> None:
    """A pool that is new, with nothing in it."""
    transaction.execute("DELETE FROM thin_devices")
    transaction.execute("INSERT OR REPLACE INTO thin_pool VALUES (1, 'new', 0)")


def set_pool_state(transaction: Transaction, state: str) -> None:
    transaction.execute("UPDATE thin_pool SET state = ?", (state,))


def set_transaction_id(transaction: Transaction, number: int) -> None:
    transaction.execute("UPDATE thin_pool SET transaction_id = ?", (number,))


def begin(transaction: Transaction, sectors: int, most: int) -> int:
    """Reserve a number that no device has, and give it."""
    [(last,)] = transaction.execute("SELECT ifnull(max(device), 0) + 1 FROM thin_devices")
    assert isinstance(last, int)
    if last > most:
        # Numbers up to the last one were used; among them are those of deleted devices.
        gaps = transaction.execute(
            """SELECT min(d.device) + 1 FROM (SELECT 0 AS device UNION ALL SELECT device FROM thin_devices) d
               WHERE NOT EXISTS (SELECT 1 FROM thin_devices n WHERE n.device = d.device + 1)"""
        )
        last = int(str(gaps[0][0]))
        if last > most:
            raise Unavailable(f"the thin pool has no number left: all of its {most} are in use")
    transaction.execute("INSERT INTO thin_devices (device, role, sectors) VALUES (?, 'creating', ?)", (last, sectors))
    return last


def become_layer(transaction: Transaction, device: int, snapshot: int) -> None:
    transaction.execute("UPDATE thin_devices SET role = 'layer', snapshot = ? WHERE device = ?", (snapshot, device))


def become_base(transaction: Transaction, device: int, mapped: int, inodes: int, uuid: str) -> None:
    transaction.execute(
        "UPDATE thin_devices SET role = 'base', mapped = ?, inodes = ?, uuid = ? WHERE device = ?",
        (mapped, inodes, uuid, device),
    )


def measured(transaction: Transaction, device: int, mapped: int, inodes: int) -> None:
    transaction.execute("UPDATE thin_devices SET mapped = ?, inodes = ? WHERE device = ?", (mapped, inodes, device))


def retire(transaction: Transaction, device: int) -> None:
    transaction.execute("UPDATE thin_devices SET role = 'removing', snapshot = NULL WHERE device = ?", (device,))


def forget(transaction: Transaction, device: int) -> None:
    transaction.execute("DELETE FROM thin_devices WHERE device = ?", (device,))


def base(transaction: Transaction) -> ThinDevice | None:
    rows = transaction.execute(_SELECT + "WHERE role = 'base'")
    return _device(rows[0]) if rows else None


def of_snapshot(transaction: Transaction, snapshot: int) -> ThinDevice | None:
    rows = transaction.execute(_SELECT + "WHERE snapshot = ?", (snapshot,))
    return _device(rows[0]) if rows else None


def in_role(transaction: Transaction, role: str) -> list[ThinDevice]:
    return [_device(row) for row in transaction.execute(_SELECT + "WHERE role = ? ORDER BY device", (role,))]


def needed(transaction: Transaction) -> set[int]:
    """The devices that are there to be mounted: those of active snapshots, and of what views look at."""
    rows = transaction.execute(
        """SELECT d.device FROM thin_devices d JOIN snapshots s ON s.id = d.snapshot WHERE s.kind = 'active'
           UNION SELECT d.device FROM snapshots v JOIN thin_devices d ON d.snapshot = v.parent WHERE v.kind = 'view'
           UNION SELECT d.device FROM snapshots v JOIN thin_devices d ON d.role = 'base'
                 WHERE v.kind = 'view' AND v.parent IS NULL"""
    )
    return {int(str(row[0])) for row in rows}


def _device(row: tuple[Value, ...]) -> ThinDevice:
    device, role, snapshot, sectors, mapped, inodes, uuid = row
    assert isinstance(device, int) and isinstance(sectors, int)
    assert snapshot is None or isinstance(snapshot, int)
    assert mapped is None or isinstance(mapped, int)
    assert inodes is None or isinstance(inodes, int)
    return ThinDevice(device, str(role), snapshot, sectors, mapped, inodes, None if uuid is None else str(uuid))
