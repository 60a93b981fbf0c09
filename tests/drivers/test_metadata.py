"""The store: what a transaction is, that it excludes others, and what it does with a damaged or foreign file."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.api import Kind, Usage
from drivers.errors import AlreadyExists, DriverError, InUse, NotFound, Unavailable, WrongState
from drivers.metadata import Store, Transaction
from tests.drivers.children import in_child

# What a driver of thin devices would keep: which number is whose, and how far its making has come.
DEVICES = (
    """CREATE TABLE devices (
        number   INTEGER PRIMARY KEY,
        snapshot INTEGER REFERENCES snapshots(id) ON DELETE SET NULL,
        state    TEXT NOT NULL)""",
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "metadata.db")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    store = Store(path, "test", DEVICES)
    yield store
    store.check_invariants()
    store.close()


def commit(store: Store, name: str, parent: str = "") -> int:
    with store.write() as transaction:
        number = transaction.create(f"key-{name}", parent, Kind.ACTIVE, {})
        transaction.commit(name, f"key-{name}", Usage(1, 4096), {})
    return number


def names(store: Store) -> list[str]:
    with store.read() as transaction:
        return [record.info.name for record in transaction.walk()]


def test_an_exception_undoes_the_transaction(store: Store) -> None:
    commit(store, "base")
    with pytest.raises(ZeroDivisionError), store.write() as transaction:
        transaction.create("key", "base", Kind.ACTIVE, {})
        transaction.execute("INSERT INTO devices VALUES (1, NULL, 'creating')")
        _ = 1 // 0
    assert names(store) == ["base"]
    with store.read() as transaction:
        assert transaction.execute("SELECT * FROM devices") == []


def test_the_graph_and_a_drivers_own_table_change_together(store: Store, path: str) -> None:
    """A process that dies before COMMIT has changed neither; after it, both."""

    def work(die: bool) -> None:
        mine = Store(path, "test", DEVICES)
        with mine.write() as transaction:
            number = transaction.create(f"key-{die}", "", Kind.ACTIVE, {})
            transaction.execute("INSERT INTO devices VALUES (?, ?, 'created')", (number + 100, number))
            if die:
                os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: work(True)).wait() == -signal.SIGKILL
    assert in_child(lambda: work(False)).wait() == 0
    assert names(store) == ["key-False"]
    with store.write() as transaction:
        number = transaction.get("key-False").id
        assert transaction.execute("SELECT * FROM devices") == [(number + 100, number, "created")]
        transaction.remove("key-False")
        assert transaction.execute("SELECT * FROM devices") == [(number + 100, None, "created")]


def test_ids_are_not_given_twice(store: Store) -> None:
    first = commit(store, "a")
    with store.write() as transaction:
        transaction.remove("a")
    assert commit(store, "b") > first


def test_lines_of_ancestors(store: Store) -> None:
    numbers = [commit(store, str(n), str(n - 1) if n else "") for n in range(200)]
    commit(store, "aside", "7")
    with store.read() as transaction:
        top = transaction.get("199")
        assert [*reversed(transaction.ancestors(top)), top.id] == numbers
        assert transaction.parent_line("199") == numbers[::-1]
        assert transaction.parent_line("") == []
        assert transaction.ancestors(transaction.get("0")) == []


def test_refusals_change_nothing(store: Store) -> None:
    commit(store, "base")
    commit(store, "child", "base")
    with store.write() as transaction:
        transaction.create("view", "base", Kind.VIEW, {})
    before = names(store)

    def refused(error: type[DriverError], method: str, *arguments: object) -> None:
        with pytest.raises(error), store.write() as transaction:
            getattr(transaction, method)(*arguments)

    refused(AlreadyExists, "create", "base", "", Kind.ACTIVE, {})
    refused(NotFound, "create", "key", "missing", Kind.ACTIVE, {})
    refused(WrongState, "create", "key", "view", Kind.ACTIVE, {})
    refused(DriverError, "create", "key", "", Kind.ACTIVE, {"label": 1})
    refused(DriverError, "create", "key", "", Kind.ACTIVE, {"": "1"})
    refused(WrongState, "commit", "name", "view", Usage(0, 0), {})
    refused(WrongState, "commit", "name", "base", Usage(0, 0), {})
    refused(InUse, "remove", "base")
    assert names(store) == before


def test_a_reader_sees_one_state(store: Store, path: str) -> None:
    commit(store, "a")
    other = Store(path, "test")
    with other.read() as transaction:
        assert len(transaction.walk()) == 1
        commit(store, "b")
        assert len(transaction.walk()) == 1
    with other.read() as transaction:
        assert len(transaction.walk()) == 2
    other.close()


def test_writers_of_many_processes_take_turns(store: Store, path: str) -> None:
    """Each reads a number and writes one more; if any two overlapped, one of the sums would be lost."""
    with store.write() as transaction:
        transaction.execute("INSERT INTO devices VALUES (1, NULL, '0')")

    def count() -> None:
        mine = Store(path, "test")
        for _ in range(25):
            with mine.write() as transaction:
                [(value,)] = transaction.execute("SELECT state FROM devices")
                transaction.execute("UPDATE devices SET state = ?", (str(int(str(value)) + 1),))
        mine.close()

    children = [in_child(count) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    with store.read() as transaction:
        assert transaction.execute("SELECT state FROM devices") == [("100",)]


def test_many_processes_make_the_store_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "new.db")

    def make(number: int) -> None:
        mine = Store(path, "test")
        commit(mine, f"n{number}")
        mine.close()

    children = [in_child(lambda n=number: make(n)) for number in range(8)]
    assert [child.wait() for child in children] == [0] * 8
    store = Store(path, "test")
    assert sorted(names(store)) == [f"n{number}" for number in range(8)]
    store.close()


def test_threads_take_turns(store: Store) -> None:
    inside = threading.Event()
    free = threading.Event()
    order: list[str] = []

    def first() -> None:
        with store.write() as transaction:
            inside.set()
            free.wait()
            transaction.create("first", "", Kind.ACTIVE, {})
            order.append("first")

    def second() -> None:
        inside.wait()
        with store.write():
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    inside.wait()
    free.set()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


def test_a_file_of_another_driver(store: Store, path: str) -> None:
    with pytest.raises(Unavailable, match="belongs to the driver test, not other"):
        Store(path, "other")


def test_a_file_of_a_newer_version(store: Store, path: str) -> None:
    with store.write() as transaction:
        transaction.execute("PRAGMA user_version = 99")
    with pytest.raises(Unavailable, match="has format 99; this version reads 2"):
        Store(path, "test")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_text("not a database, " * 100)
    with pytest.raises(Unavailable, match="not a database"):
        Store(str(path), "test")


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot open .*missing: No such file"):
        Store(str(tmp_path / "missing" / "metadata.db"), "test")


def test_it_is_not_used_across_fork(store: Store) -> None:
    def use() -> None:
        with pytest.raises(WrongState, match="before fork"), store.read():
            pass

    assert in_child(use).wait() == 0


def test_committed_means_synced(store: Store) -> None:
    """In WAL mode anything less than FULL may lose the last transactions in a power cut."""
    with store.read() as transaction:
        assert transaction.execute("PRAGMA synchronous") == [(2,)]
        assert transaction.execute("PRAGMA journal_mode") == [("wal",)]
        assert transaction.execute("PRAGMA foreign_keys") == [(1,)]


def test_the_schema_refuses_what_the_methods_never_do(store: Store) -> None:
    """A bug in a driver's own statement meets the database's own rules."""
    commit(store, "base")
    commit(store, "child", "base")

    def refused(sql: str) -> None:
        with pytest.raises(Unavailable) as error, store.write() as transaction:
            Transaction.execute(transaction, sql)
        assert isinstance(error.value.__cause__, sqlite3.IntegrityError)

    refused("DELETE FROM snapshots WHERE name = 'base'")
    refused("UPDATE snapshots SET parent = 999 WHERE name = 'child'")
    refused("UPDATE snapshots SET name = 'base' WHERE name = 'child'")
    refused("UPDATE snapshots SET kind = 'other'")
    refused("UPDATE snapshots SET kind = 'view'")
