"""Databases of a lower branch that are killed at work: what was committed is there, what was not is not. They rely on
locks of processes that end without a word, on maps, on what fsync(2) says, and on journals that are found after."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.children import in_child
from tests.mounting import Union, kill_server

pytestmark = pytest.mark.needs("fuse", "trusted-xattr")

ROWS = 2000


@pytest.fixture
def union(mount_union: Callable[..., Union], tmp_path: Path) -> Union:
    """With a database in the lower branch."""
    low = tmp_path / "low"
    low.mkdir()
    base = sqlite3.connect(low / "base.db")
    base.execute("create table rows (writer integer, value integer, filling blob)")
    base.executemany("insert into rows values (0, ?, randomblob(200))", ((n,) for n in range(ROWS)))
    base.commit()
    base.close()
    return mount_union("low", "up")


def check(path: str, wanted: list[tuple[int, int]]) -> None:
    """The database is sound, and has so many rows of each writer."""
    connection = sqlite3.connect(path, timeout=30)
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    found = connection.execute("select writer, count(*) from rows group by writer order by writer").fetchall()
    connection.close()
    assert found == wanted


def test_processes_that_write_to_one_database(union: Union) -> None:
    path = f"{union.path}/base.db"

    def write(writer: int) -> None:
        connection = sqlite3.connect(path, timeout=60)
        for value in range(25):
            with connection:
                connection.execute("insert into rows values (?, ?, x'00')", (writer, value))
        connection.close()

    first = sqlite3.connect(path)
    first.execute("pragma journal_mode = wal")
    first.close()
    children = [in_child(lambda writer=writer: write(writer)) for writer in (1, 2, 3, 4)]  # type: ignore[misc]
    assert [child.wait() for child in children] == [0] * 4
    wanted = [(0, ROWS), *((writer, 25) for writer in (1, 2, 3, 4))]
    check(path, wanted)
    union.remount()
    check(path, wanted)


@pytest.mark.parametrize("victim", ["writer", "server"])
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_killed_in_a_transaction(union: Union, journal: str, victim: str) -> None:
    """When it has written more than it can hold back: the pages are in the database, or in its log."""
    path = f"{union.path}/base.db"
    readable, writable = os.pipe()

    def work() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(f"pragma journal_mode = {journal}")
        connection.execute("pragma cache_size = 10")
        connection.execute("insert into rows values (1, 0, x'00')")
        connection.execute("begin immediate")
        connection.execute("update rows set writer = 2, filling = randomblob(200)")
        os.write(writable, b"in it")
        signal.pause()

    child = in_child(work)
    os.close(writable)
    assert os.read(readable, 5) == b"in it"
    os.close(readable)
    assert Path(f"{path}-{'wal' if journal == 'wal' else 'journal'}").stat().st_size > 100_000
    if victim == "server":
        kill_server(union.path)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    if victim == "server":
        union.unmount()
        union.mount()
    check(path, [(0, ROWS), (1, 1)])
    union.remount()
    check(path, [(0, ROWS), (1, 1)])


NOBODY = 65534


@contextmanager
def postgres(data: str, sockets: str) -> Iterator[Callable[[str], str]]:
    """A server on the directory `data`, for the time of the `with`; gives what a statement answers. Then it is killed,
    with all its processes, as by a power cut of its own."""
    words = ["-D", data, "-k", sockets, "-c", "listen_addresses=", "-c", "shared_buffers=1MB"]
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with open(f"{sockets}/log", "ab") as log:
        server = subprocess.Popen(
            [*as_nobody, "postgres", *words], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def ask(statement: str) -> str:
        command = [*as_nobody, "psql", "-h", sockets, "-U", "nobody", "-d", "postgres", "-Atqc", statement]
        return subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout.strip()

    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["pg_isready", "-q", "-h", sockets], check=False).returncode:
            assert server.poll() is None and time.monotonic() < deadline, Path(sockets, "log").read_text()
            time.sleep(0.05)
        yield ask
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        # Each of its processes ends when it finds its postmaster gone; the next server waits for its shared memory.
        with open(f"{data}/postmaster.pid") as file:
            assert int(file.readline()) == server.pid
        _wait_for_who_works_in(data)


def _wait_for_who_works_in(directory: str) -> None:
    """Each has a session of its own, and its working directory there."""
    deadline = time.monotonic() + 60
    while any(_working_directory(name) == directory for name in os.listdir("/proc") if name.isdigit()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _working_directory(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


@pytest.mark.needs("root", *(f"program:{name}" for name in ("initdb", "postgres", "psql", "pg_isready", "setpriv")))
@pytest.mark.parametrize("transport", ["auto"])
def test_postgres(mount_union: Callable[..., Union]) -> None:
    """It is killed twice, with the union mounted anew between."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as home:  # below pytest's nobody else can enter
        os.chmod(home, 0o755)
        for name in ("low", "up", "sockets"):
            os.mkdir(f"{home}/{name}")
            os.chown(f"{home}/{name}", NOBODY, NOBODY)
        made = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "initdb", "-N", "-A", "trust",
                "-U", "nobody", "--no-locale", "-E", "UTF8", f"{home}/low/data"]
        subprocess.run(made, cwd="/", check=True, capture_output=True)
        union = Union(home, [f"{home}/low", f"{home}/up"]).mount()
        try:
            data, sockets = f"{union.path}/data", f"{home}/sockets"
            with postgres(data, sockets) as ask:
                ask("create table t as select n, repeat('x', 100) filling from generate_series(1, 5000) n")
                ask("checkpoint")
                ask("update t set filling = repeat('y', 100) where n <= 2500")
            union.remount()
            with postgres(data, sockets) as ask:
                assert ask("select filling ~ '^y', count(*), sum(n) from t group by 1 order by 1") == (
                    "f|2500|9376250\nt|2500|3126250"
                )
                ask("delete from t where n > 10")
                ask("vacuum full t")
            union.remount()
            with postgres(data, sockets) as ask:
                assert ask("select count(*), sum(n) from t") == "10|55"
                ask("reindex table t")
        finally:
            union.close()
