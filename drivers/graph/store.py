"""The metadata store of one driver: the layer graph, in one sqlite file, changed by transactions.

The store is the truth: a snapshot exists if, and only if, it has a row. Directories, devices and datasets follow it, so
a driver makes what a row needs before it commits the row, and deletes it after the row has gone. A driver that has
state of its own to keep (thin device numbers, say) passes the tables for it and changes them with
`Transaction.execute` in the same transaction as the graph: there is no second store that a crash could leave behind.

Any number of processes may open a store at once. A write transaction is BEGIN IMMEDIATE: there is one writer at a
time, and what it reads stays true until it ends. A `Store` may be used by any number of threads, which take turns; it
is not used across fork(), since sqlite must not be (sqlite.org/howtocorrupt.html, 2.6).
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager

from drivers.api import Kind
from drivers.disk import reserve
from drivers.disk.locks import holder, lock
from drivers.disk.ownership import check_file
from drivers.errors import TimedOut, Unavailable, WrongState
from drivers.graph.schema import settle
from drivers.graph.transaction import Transaction

STORE = "metadata.db"  # in a driver's root
# Longer than any write transaction takes, even though it waits for the disk.
BUSY_SECONDS = 120.0
_LEAST = 64 << 10  # bytes: the log's index, and a transaction


class Store:
    """The sqlite file at `path`, made if missing, of the driver `driver`.

    `schema` are the statements that make the driver's own tables; they run once, when the file is made. `has_content`
    says whether the driver finds snapshots on its root: a store that would be new then has been lost, and is not made
    anew, for with it everything on the root would become garbage.

    `identity`, 32 hexadecimal digits, is what the driver writes on the directories, devices and datasets that it uses.
    It makes nothing on what bears another store's, and once it has noted that it has written its own there
    (Transaction.set_mark), it believes nothing that bears none.

    `options` are the driver's options (drivers.catalog), which are kept: the store's own `options` are those given
    before, overridden by those given here. Those that are `fixed` cannot be changed once there is a store. `agree`
    looks at all of them together and raises Unavailable where they do not go together: then nothing is kept.

    Raises Unavailable for a file that is damaged, lost, from a newer version, or another driver's, and for a change of
    a fixed option. Any method raises TimedOut when another process keeps the store to itself, and OSError (ENOSPC) on a
    full disk; what was asked for has then not happened.
    """

    def __init__(
        self,
        path: str,
        driver: str,
        schema: Sequence[str] = (),
        *,
        options: Mapping[str, str] | None = None,
        fixed: Container[str] = (),
        renamed: Container[str] = (),
        agree: Callable[[Mapping[str, str]], object] = lambda options: None,
        has_content: Callable[[], bool] = lambda: False,
    ) -> None:
        self.path = path
        self.options: dict[str, str] = {}
        self.identity = ""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._reserve = f"{path}-reserve"
        with _opening(path):
            check_file(path)
            self._make_room()
            try:
                self._connect(driver, schema, has_content, options or {}, fixed, renamed, agree)
            except (OSError, Unavailable) as error:
                if not _is_want_of_room(error):
                    raise
                reserve.give_up(self._reserve)
                self._connect(driver, schema, has_content, options or {}, fixed, renamed, agree)
            reserve.take(self._reserve)

    def _connect(
        self,
        driver: str,
        schema: Sequence[str],
        has_content: Callable[[], bool],
        options: Mapping[str, str],
        fixed: Container[str],
        renamed: Container[str],
        agree: Callable[[Mapping[str, str]], object],
    ) -> None:
        with self._translated():
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(driver, schema, has_content)
                self._settle_options(options, fixed, renamed, agree)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, driver: str, schema: Sequence[str], has_content: Callable[[], bool]) -> None:
        assert self._connection is not None
        self._connection.execute("PRAGMA journal_mode = WAL")
        # FULL: in WAL mode NORMAL may lose the last transactions in a power cut (sqlite.org/pragma.html).
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        with self.write() as transaction:
            self.identity = settle(transaction, self.path, driver, schema, has_content)

    def _settle_options(
        self,
        given: Mapping[str, str],
        fixed: Container[str],
        renamed: Container[str],
        agree: Callable[[Mapping[str, str]], object],
    ) -> None:
        """Only a change is written: most opens only read."""
        with self.read() as transaction:
            saved = {str(name): str(value) for name, value in transaction.execute("SELECT name, value FROM options")}
            is_new = not transaction.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'") and not saved
        changed = {name: value for name, value in given.items() if saved.get(name) != value}
        if changed and not is_new:
            for name in changed:
                if name in fixed and not (name in renamed and name in saved):
                    was = f"is {saved[name]}" if name in saved else "has its default"
                    raise Unavailable(
                        f"{name} {was} at {os.path.dirname(self.path)} and cannot be changed any more: "
                        "leave it out, or choose another --root"
                    )
        agree(saved | changed)
        if changed:
            with self.write() as transaction:
                for name, value in changed.items():
                    transaction.execute("INSERT OR REPLACE INTO options VALUES (?, ?)", (name, value))
        self.options = saved | changed

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that sees one state of the store throughout, and changes nothing."""
        with self._transaction("BEGIN") as transaction:
            yield transaction

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """The only write transaction of all processes. It is durable when the `with` ends; an exception undoes it."""
        with self._transaction("BEGIN IMMEDIATE") as transaction:
            yield transaction

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Transaction]:
        with self._lock, self._translated():
            connection = self._open_connection()
            self._make_room()
            connection.execute(begin)
            try:
                yield Transaction(connection)
                connection.execute("COMMIT")
            finally:
                # Not after COMMIT; nor after an error for which sqlite has already rolled back (SQLITE_FULL).
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise WrongState(f"the driver at {os.path.dirname(self.path)} is closed")
        if self._pid != os.getpid():
            raise WrongState(f"the driver at {os.path.dirname(self.path)} was opened before fork(): open it again")
        return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                who = self._writer()
                raise TimedOut(f"waited {BUSY_SECONDS:g} s for {self.path}, which {who} is changing") from error
            if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
                reserve.give_up(self._reserve)  # the next attempt finds room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path) from error
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(str(error)) from error
            raise Unavailable(f"metadata store {self.path}: {error}") from error

    def _make_room(self) -> None:
        """Give up the reserve if nothing could be written without. Raises OSError (ENOSPC) where that did not help and
        even reading needs room: to change the log's index, which is mapped into our memory, would end this process."""
        directory = os.path.dirname(self.path)
        if reserve.has_room(directory):
            return
        reserve.give_up(self._reserve)
        if reserve.maps_need_room(directory) and not reserve.has_room(directory, _LEAST):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def _writer(self) -> str:
        """Who holds the lock of a write transaction: byte 120 of the log's index (sqlite, os_unix.c and wal.c)."""
        try:
            # Not opened: closing it would release the locks that sqlite holds on it in this process (fcntl_locking(2)).
            return holder(os.stat(f"{self.path}-shm"), "POSIX", byte=120)
        except OSError:
            return "another process"

    def check_whole(self) -> None:
        """Raise Unavailable if the file is damaged: before anything is deleted because it has no row in it."""
        with self.read() as transaction:
            damage = transaction.execute("PRAGMA quick_check(1)")
        if damage != [("ok",)]:
            raise self._damaged(str(damage[0][0]))

    def check_newest(self, newest: int, where: str) -> None:
        """Raise Unavailable if this is an older copy: by it the newer snapshots would be garbage, and their ids would
        be given again. `newest` is the greatest id borne by anything that is `where`. It was looked up before this: by
        now it has a row.
        """
        with self.read() as transaction:
            last = transaction.last_id()
        if newest > last + 1:  # one more may belong to somebody who is just before COMMIT, or was killed there
            raise Unavailable(
                f"{self.path} is an older copy: it knows {last} snapshots, and the newest {where} is the {newest}th; "
                f"put back the one that belongs to them, or remove {os.path.dirname(self.path)} to begin anew"
            )

    def _damaged(self, how: str) -> Unavailable:
        return Unavailable(f"{self.path} is damaged ({how}); nothing was changed: restore it from a backup")

    def close(self) -> None:
        """Close the file. Twice is fine; the store then says WrongState."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def check_invariants(self) -> None:
        """What must hold between transactions; for tests. Raises AssertionError."""
        with self.read() as transaction:
            damage = transaction.execute("PRAGMA integrity_check") + transaction.execute("PRAGMA foreign_key_check")
            assert damage == [("ok",)], damage
            records = {record.info.name: record for record in transaction.walk()}
            for record in records.values():
                info = record.info
                assert (info.kind is Kind.COMMITTED) == (record.usage is not None), info
                if info.parent:
                    assert records[info.parent].info.kind is Kind.COMMITTED, info
                    assert records[info.parent].id < record.id, info


def _is_want_of_room(error: Exception) -> bool:
    """Whether an error in opening a store comes from a full disk. Of a file for which there is no room, sqlite only
    says that it cannot open it."""
    if isinstance(error.__cause__, sqlite3.Error):
        code = error.__cause__.sqlite_errorcode & 0xFF
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _opening(path: str) -> Iterator[None]:
    """Openers take turns: changing a new file to WAL mode does not wait for its lock as transactions do.

    Raises Unavailable if the directory is missing or not ours to use.
    """
    directory = os.path.dirname(path)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"cannot open {directory}: {error.strerror}") from error
    try:
        lock(fd, directory)
        is_new = not os.path.exists(path)
        yield
        if is_new:
            os.fsync(fd)  # the file's name; sqlite sees to its content
    finally:
        os.close(fd)
