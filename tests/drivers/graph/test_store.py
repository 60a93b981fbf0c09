"""The store: what a transaction is, that it excludes others, and what it does with a damaged or foreign file."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from drivers.api import Info, Kind, Usage
from drivers.catalog import open_driver
from drivers.disk import reserve
from drivers.errors import AlreadyExists, DriverError, InUse, NotFound, TimedOut, Unavailable, WrongState
from drivers.graph import store as metadata
from drivers.graph.store import Store
from drivers.graph.transaction import Record, Transaction
from tests import trees
from tests.children import in_child
from tests.mounting import mounted

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

    children = [in_child(partial(make, number)) for number in range(8)]
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
    with pytest.raises(Unavailable, match="has format 99; this version reads 3"):
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


# What the file may have become.


def test_a_store_that_is_lost(tmp_path: Path) -> None:
    """With a new one in its place cleanup() would take every layer for garbage."""
    root = str(tmp_path / "root")
    driver = open_driver("vfs", root)
    with mounted(driver.prepare("key")) as path:
        trees.build(path, {"f": "precious"})
    driver.commit("base", "key")
    driver.close()
    saved = Path(root, "metadata.db").read_bytes()
    damages: tuple[Callable[[Path], object], ...] = (Path.unlink, lambda file: file.write_bytes(b""))
    for damage in damages:
        damage(Path(root, "metadata.db"))
        with pytest.raises(Unavailable, match="missing or empty, but there are layers beside it: restore it") as lost:
            open_driver("vfs", root)
        assert "\n" not in str(lost.value)
        assert Path(root, "snapshots/1/fs/f").read_text() == "precious"
    Path(root, "metadata.db").write_bytes(saved)
    driver = open_driver("vfs", root)
    driver.cleanup()
    assert driver.stat("base").kind is Kind.COMMITTED
    driver.close()


@pytest.mark.parametrize("at", [0, 20, 100])
def test_a_damaged_header(path: str, at: int) -> None:
    """The magic number, the page's format and its tree: refused, and left as it is."""
    Store(path, "test").close()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 8)
    before = Path(path).read_bytes()
    with pytest.raises(Unavailable, match=r"is damaged \(.*\); nothing was changed: restore it from a backup"):
        Store(path, "test")
    assert Path(path).read_bytes() == before


def test_cleanup_deletes_nothing_by_a_damaged_store(tmp_path: Path) -> None:
    """A page in the middle: every method may still work, and the rows in it are not there."""
    root = str(tmp_path / "root")
    driver = open_driver("vfs", root)
    for number in range(200):
        with driver._store.write() as transaction:
            transaction.create(f"key-{number}", "", Kind.ACTIVE, {"padding": "x" * 200})
    driver.prepare("last")
    driver.close()
    database = Path(root, "metadata.db")
    pages = os.path.getsize(database) // 4096
    assert pages > 10
    refused = 0
    whole = database.read_bytes()
    for page in range(1, pages):
        database.write_bytes(whole[: page * 4096] + b"\0" * 4096 + whole[(page + 1) * 4096 :])
        try:
            driver = open_driver("vfs", root)
        except Unavailable as error:
            assert "damaged" in str(error)
            continue
        with pytest.raises(Unavailable, match="damaged"):
            driver.cleanup()
        refused += 1
        driver.close()
        assert set(os.listdir(f"{root}/snapshots")) == {"201", "identity"}
    assert refused > pages // 2


VERSION_1 = (
    "CREATE TABLE store (driver TEXT NOT NULL)",
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
        CHECK (kind = 'committed' OR (inodes IS NULL AND size IS NULL)))""",
    "CREATE INDEX snapshots_by_parent ON snapshots(parent)",
    "INSERT INTO store VALUES ('test')",
    "INSERT INTO snapshots VALUES (3, 'base', NULL, 'committed', '{\"a\": \"b\"}', 1, 2, 10, 4096)",
    "INSERT INTO snapshots VALUES (7, 'key', 3, 'active', '{}', 3, 3, NULL, NULL)",
    "PRAGMA user_version = 1",
)
VERSION_2 = (
    *VERSION_1,
    "ALTER TABLE snapshots ADD COLUMN quota INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE snapshots ADD COLUMN volatile INTEGER NOT NULL DEFAULT 0",
    "CREATE TABLE options (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "PRAGMA user_version = 2",
)


@pytest.mark.parametrize("statements", [VERSION_1, VERSION_2], ids=["1", "2"])
def test_a_store_of_an_older_version(path: str, statements: tuple[str, ...]) -> None:
    """It becomes one of this version, for whoever of several opens it first."""
    old = sqlite3.connect(path, isolation_level=None)
    old.execute("PRAGMA journal_mode = WAL")
    for statement in statements:
        old.execute(statement)
    old.close()
    children = [in_child(lambda: Store(path, "test", options={"x": "1"}).close()) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    store = Store(path, "test")
    store.check_invariants()
    assert store.options == {"x": "1"}
    with store.write() as transaction:
        base, key = transaction.walk()
        assert base == Record(3, Info("base", "", Kind.COMMITTED, {"a": "b"}, 1, 2), Usage(10, 4096))
        assert key == Record(7, Info("key", "base", Kind.ACTIVE, {}, 3, 3), None)
        assert transaction.create("new", "base", Kind.ACTIVE, {}, quota=5, volatile=True) == 8
        assert transaction.get("new").info.quota == 5
        assert transaction.mark("disk") is None
        transaction.set_mark("disk", "7")
        assert transaction.mark("disk") == "7"
    store.close()
    assert len(store.identity) == 32
    again = Store(path, "test")
    assert again.identity == store.identity
    again.close()


def test_no_two_stores_have_the_same_identity(memory: Path) -> None:
    stores = [Store(str(memory / name), "test") for name in ("one", "two")]
    assert len({store.identity for store in stores}) == 2
    for store in stores:
        store.close()


def test_options_are_kept_and_the_fixed_ones_stay(path: str) -> None:
    def opened(options: dict[str, str]) -> dict[str, str]:
        store = Store(path, "test", options=options, fixed={"size", "shape"})
        store.close()
        return store.options

    assert opened({"size": "1"}) == {"size": "1"}
    commit(store := Store(path, "test"), "base")
    store.close()
    assert opened({}) == {"size": "1"}
    assert opened({"size": "1", "colour": "red"}) == {"size": "1", "colour": "red"}
    assert opened({"colour": "blue"}) == {"size": "1", "colour": "blue"}
    with pytest.raises(Unavailable, match=r"size is 1 at .* and cannot be changed any more: leave it out, or choose"):
        opened({"size": "2", "colour": "green"})
    with pytest.raises(Unavailable, match="shape has its default at"):
        opened({"shape": "round"})
    assert opened({}) == {"size": "1", "colour": "blue"}


# Others that have it, and disks that are full.


def test_a_writer_that_takes_too_long_is_named(store: Store, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "BUSY_SECONDS", 0.05)
    (began, begin), (end, ended) = os.pipe(), os.pipe()

    def hold() -> None:
        mine = Store(path, "test")
        with mine.write():
            os.write(begin, b"x")
            os.read(end, 1)

    child = in_child(hold)
    os.read(began, 1)
    try:
        with store.read() as transaction:
            transaction.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(TimedOut) as late, store.write():
            pass
        comm = Path(f"/proc/{child.pid}/comm").read_text().strip()
        assert str(late.value) == f"waited 0.05 s for {path}, which process {child.pid} ({comm}) is changing"
    finally:
        os.write(ended, b"x")
        assert child.wait() == 0
        for fd in (began, begin, end, ended):
            os.close(fd)
    commit(store, "base")


def fill(directory: Path) -> Path:
    """Write until nothing more fits."""
    filler = directory / "filler"
    with filler.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    return filler


@pytest.mark.parametrize("is_open", [True, False])
def test_what_fills_the_disk_can_be_removed(memory: Path, is_open: bool) -> None:
    """By a store that is open and by one that is opened then, for which there are not even the blocks of its index."""
    path = str(memory / "metadata.db")
    store = Store(path, "test")
    for name in ("one", "two"):
        commit(store, name)
    if not is_open:
        store.close()
    filler = fill(memory)
    if not is_open:
        store = Store(path, "test")
    with store.write() as transaction:
        transaction.remove("one")
    store.close()
    filler.unlink()
    store = Store(path, "test")
    assert reserve.is_whole(f"{path}-reserve")  # for the next time
    assert names(store) == ["two"]
    store.close()


def test_a_reserve_that_is_not_whole(memory: Path) -> None:
    """Who makes it was killed; or it is the one file that older versions made."""
    path, place = str(memory / "metadata.db"), memory / "metadata.db-reserve"
    Store(path, "test").close()
    (place / "3").unlink()
    os.truncate(place / "5", 0)
    Store(path, "test").close()
    assert reserve.is_whole(str(place))
    assert sum(file.stat().st_blocks for file in place.iterdir()) * 512 >= reserve.SIZE
    shutil.rmtree(place)
    place.write_bytes(bytes(reserve.SIZE))
    filler = fill(memory)
    Store(path, "test").close()
    assert not place.exists()
    filler.unlink()
    Store(path, "test").close()
    assert reserve.is_whole(str(place))


def test_a_full_disk_is_enospc(memory: Path) -> None:
    """Without a reserve, as a place has none that never had room for it."""
    path = str(memory / "metadata.db")
    store = Store(path, "test")
    reserve.give_up(f"{path}-reserve")
    filler = fill(memory)
    with pytest.raises(OSError, match="No space left") as full:
        for number in range(1000):
            commit(store, f"n{number}")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, path)
    store.check_invariants()
    before = names(store)
    filler.unlink()
    store.close()
    fill(memory)
    with pytest.raises(OSError, match="No space left"):
        Store(path, "test")
    filler.unlink()
    store = Store(path, "test")
    assert names(store) == before
    store.close()
