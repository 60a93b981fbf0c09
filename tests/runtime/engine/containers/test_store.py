"""Containers on disk: names, ids, locks; and logs."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drivers.errors import TimedOut
from runtime.engine.containers import logs, names
from runtime.engine.containers import store as containers
from runtime.engine.containers.store import ContainerStore
from runtime.engine.paths import Paths
from runtime.engine.state import State, Status
from runtime.errors import NameInUse, NoSuchContainer
from tests.runtime.engine.containers.records import add, config
from unionfs.linux import mounts


def test_a_container_is_read_back_as_it_was_added(store: ContainerStore) -> None:
    container = add(store, "box")
    assert store.load(container.id) == container
    assert container.state().status is Status.CREATING
    assert [each.id for each in store] == [container.id]


def test_a_name_is_given_once(store: ContainerStore) -> None:
    first = add(store, "box")
    with pytest.raises(NameInUse, match=first.id[:12]):
        store.add(config(store, "box"))
    assert len(list(store)) == 1
    store.drop(first)
    add(store, "box")


def test_made_up_names_do_not_meet(store: ContainerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "new_name", lambda: "calm_tern")
    made = {add(store).config.name for _ in range(3)}
    assert len(made) == 3
    assert "calm_tern" in made


def test_references(store: ContainerStore) -> None:
    """As docker: full id, then name, then the beginning of an id that is only one's."""
    first, second = add(store, "box", "aa" * 32), add(store, "bb", "ab" * 32)
    third = add(store, "named-like", "bb" * 32)
    assert store.get("box") == first
    assert store.get("aa" * 32) == first
    assert store.get("ab") == second
    assert store.get("bb") == second
    assert store.get("bbb") == third
    with pytest.raises(NoSuchContainer, match="Multiple"):
        store.get("a")
    for missing in ("c", "", ".", "..", "names", ".lock", "../root", "box/", "aa" * 31 + "ab", "a" * 65):
        with pytest.raises(NoSuchContainer, match="No such container"):
            store.get(missing)


@pytest.mark.needs("tmpfs")
def test_what_is_still_mounted_is_never_deleted(store: ContainerStore) -> None:
    container = add(store, "box")
    os.makedirs(container.rootfs)
    mounts.mount("tmpfs", container.rootfs, "tmpfs")
    try:
        Path(container.rootfs, "precious").touch()
        container.rest(State(Status.EXITED))
        assert Path(container.rootfs, "precious").exists()
    finally:
        mounts.umount2(container.rootfs)
    container.clear()
    assert os.listdir(store.paths.running) == []


def test_a_dangling_name_is_free(store: ContainerStore) -> None:
    """Killed in the middle of `drop`."""
    os.symlink("f" * 64, f"{store.paths.containers}/names/box")
    assert add(store, "box").config.name == "box"


def test_a_lock_has_one_holder_and_dies_with_it(store: ContainerStore) -> None:
    container, lock = store.add(config(store, "box"))
    assert container.lock() is None
    os.close(lock)
    again = container.lock()
    assert again is not None
    store.drop(container)
    os.close(again)
    with pytest.raises(NoSuchContainer):
        container.lock()
    with pytest.raises(NoSuchContainer):
        container.state()


_ADD_MANY = """
import sys
from runtime.errors import NameInUse
from runtime.engine.containers.store import ContainerStore
from runtime.engine.paths import Paths
from tests.runtime.engine.containers.records import add
store = ContainerStore(Paths.of(*sys.argv[1:]))
for number in range(20):
    try:
        add(store, f"box{number}")
    except NameInUse:
        continue
"""


def test_processes_that_want_the_same_names_share_them_out(store: ContainerStore) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", _ADD_MANY, *store.paths]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert sorted(each.config.name for each in store) == sorted(f"box{number}" for number in range(20))


def test_log_is_docker_json_and_gives_every_byte_back(tmp_path: Path) -> None:
    writer = logs.Writer(str(tmp_path / "log"))
    data = bytes(range(256)) + b"\n" + "grün\n".encode() + b"x" * 40_000 + b"\nend"
    for at in range(0, len(data), 7):
        writer.write("stdout", data[at : at + 7])
    assert writer.write("stderr", b"oops\n")
    assert not writer.write("stderr", b"part")
    writer.close()
    with logs.Reader(str(tmp_path / "log")) as reader:
        entries = list(reader.entries())
        assert list(reader.entries()) == []
    assert b"".join(entry.data for entry in entries if entry.stream == "stdout") == data
    assert b"".join(entry.data for entry in entries if entry.stream == "stderr") == b"oops\npart"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert set(lines[0]) == {"log", "stream", "time"}
    assert max(len(line["log"]) for line in lines) == logs.LINE
    assert lines[0]["time"].endswith("Z")


def test_log_goes_on_with_whole_lines_after_a_full_disk(tmp_path: Path) -> None:
    mounts.mount("tmpfs", str(tmp_path), "tmpfs", 0, "size=64k")
    try:
        spare = tmp_path / "spare"
        spare.write_bytes(b"-" * 8192)
        writer = logs.Writer(str(tmp_path / "log"))
        written = 0
        while writer.write("stdout", b"x" * 1000 + b"\n"):
            written += 1
        spare.unlink()
        assert writer.write("stdout", b"after\n")
        writer.close()
        with logs.Reader(str(tmp_path / "log")) as reader:
            found = [entry.data for entry in reader.entries()]
        assert len(found) == written + 1
        assert found[-1] == b"after\n"
    finally:
        mounts.umount2(str(tmp_path))


def test_log_is_read_on_from_where_it_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with logs.Reader(path) as reader:
        assert list(reader.entries()) == []
        writer = logs.Writer(path)
        writer.write("stdout", b"one\n")
        assert [entry.data for entry in reader.entries()] == [b"one\n"]
        writer.write("stdout", b"two\n")
        with open(path, "ab") as file:
            file.write(b'{"log":"in the midd')
        assert [entry.data for entry in reader.entries()] == [b"two\n"]
        with open(path, "ab") as file:
            file.write(b'le\\n","stream":"stdout","time":""}\n')
        assert [entry.data for entry in reader.entries()] == [b"in the middle\n"]
        os.unlink(path)
        writer.write("stdout", b"last\n")
        writer.close()
        assert [entry.data for entry in reader.entries()] == [b"last\n"]


def test_a_reader_ends_at_what_was_the_end_of_a_log_that_grows(tmp_path: Path) -> None:
    """A container may write for ever, and faster than anybody reads."""
    writer = logs.Writer(str(tmp_path / "log"))
    writer.write("stdout", b"one\ntwo\n")
    with logs.Reader(str(tmp_path / "log")) as reader:
        found = []
        for entry in reader.entries():
            found.append(entry.data)
            writer.write("stdout", b"more\n")
            assert len(found) < 9
        assert found == [b"one\n", b"two\n"]
        assert [entry.data for entry in reader.entries()] == [b"more\n", b"more\n"]
    writer.close()


# What a power cut, a restored backup or an editor leaves of a line.
NO_ENTRIES = (
    b"half of a li", b"{}", b"[]", b"null", b"\0\0\0\0", b"\xff\xfe{", b'{"log":1,"stream":"stdout","time":""}',
    b"[" * 100_000, b'{"log":"x","stream":"elsewhere","time":""}', b'{"log":"\\ud800","stream":"stdout","time":""}',
    b"",
)  # fmt: skip


def line(text: str) -> bytes:
    return json.dumps({"log": f"{text}\n", "stream": "stdout", "time": ""}).encode() + b"\n"


def test_a_line_of_a_log_that_is_none_is_told_once_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    told: list[str] = []
    damaged = b"".join(b"%b\n%b" % (no_entry, line(str(number))) for number, no_entry in enumerate(NO_ENTRIES))
    path.write_bytes(line("first") + damaged + b"\0" * 4096 + line("after zeros"))
    with logs.Reader(str(path), tell=told.append) as reader:
        found = [entry.data.decode() for entry in reader.entries()]
    assert found == ["first\n", *(f"{number}\n" for number in range(len(NO_ENTRIES))), "after zeros\n"]
    assert told == [f"{path}: what is no line of a log is left out, at byte {len(line('first'))} first"]


def test_a_log_that_is_cut_in_its_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    """As logrotate's copytruncate does it."""
    path = tmp_path / "log"
    path.write_bytes(line("a longer one") + line("two") + b'{"log":"in the midd')
    with logs.Reader(str(path)) as reader:
        assert len(list(reader.entries())) == 2
        path.write_bytes(line("anew"))
        assert [entry.data for entry in reader.entries()] == [b"anew\n"]
        path.write_bytes(b"")
        assert list(reader.entries()) == []
        path.write_bytes(line("more"))
        assert [entry.data for entry in reader.entries()] == [b"more\n"]


def test_one_that_is_up_is_where_it_was_started(store: ContainerStore, tmp_path: Path) -> None:
    """Whatever state directory others have; and nowhere else, once that is gone."""
    container = add(store, "box")
    container.make_run_directory()
    elsewhere = ContainerStore(Paths.of(store.paths.root, str(tmp_path / "other"))).get("box")
    assert elsewhere.run_directory == container.run_directory == f"{store.paths.running}/{container.id}"
    os.rename(store.paths.state, tmp_path / "moved")
    assert elsewhere.run_directory == f"{tmp_path}/other/containers/{container.id}"
    elsewhere.clear()
    assert not os.path.lexists(f"{container.directory}/up")
    os.rename(tmp_path / "moved", store.paths.state)
    container.clear()
    assert os.listdir(store.paths.running) == []


def test_the_lock_of_the_names_is_waited_for_with_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = containers.ContainerStore(Paths(str(tmp_path / "root"), str(tmp_path / "state")))
    os.mkdir(f"{store.paths.containers}/{'0' * 64}")  # to be swept, under the lock
    monkeypatch.setattr(containers, "_PATIENCE", 0.01)
    with open(f"{store.paths.containers}/.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimedOut, match=rf"\.lock, which process {os.getpid()} "):
            store.sweep()
    store.sweep()
    assert set(os.listdir(store.paths.containers)) == {"names", ".lock"}
