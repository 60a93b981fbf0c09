"""The engine's pure parts: option values, the specification, accounts, frames, names, states."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.engine import frames, records, state
from runtime.engine.containers import logs, names, spec
from runtime.engine.containers.request import CreateRequest, Volume
from runtime.engine.state import State, Status
from runtime.errors import ConfigError, DamagedRecord, InvalidValue, RuntimeFault, StateError, TaskLost, by_name


def test_environment_of_image_and_user_over_the_defaults() -> None:
    found = spec.environment(["PATH=/x", "A=image", "B=image"], ["A=user", "B"], hostname="box", terminal=True)
    assert found == ["PATH=/x", "HOSTNAME=box", "TERM=xterm", "A=user"]


@pytest.mark.parametrize(
    ("command", "image", "expected"),
    [
        ((), {"Cmd": ["sh"]}, ["sh"]),
        (("ls", "-l"), {"Cmd": ["sh"]}, ["ls", "-l"]),
        ((), {"Entrypoint": ["nice"], "Cmd": ["sh"]}, ["nice", "sh"]),
        (("ls",), {"Entrypoint": ["nice"], "Cmd": ["sh"]}, ["nice", "ls"]),
        ((), {"Entrypoint": ["nice"], "Cmd": None}, ["nice"]),
    ],
)
def test_command_of_image_and_user(command: tuple[str, ...], image: dict[str, list[str]], expected: list[str]) -> None:
    assert spec.arguments(command, image, "image") == expected


def test_an_image_without_a_command_needs_one() -> None:
    with pytest.raises(ConfigError, match="No command specified"):
        spec.arguments((), {}, "image")


def test_a_volume_takes_the_place_of_a_default_mount_and_parents_come_first() -> None:
    wish = CreateRequest(
        "image", ("sh",),
        volumes=(Volume("/v", "/data/deep", True), Volume("/w", "/data", False), Volume("/h", "/etc/hosts", True),
                 Volume("/s", "/dev/shm", False), Volume("/e", "/etc", False)),
    )  # fmt: skip
    mounts = spec.mounts(wish)
    order = [mount["destination"] for mount in mounts]
    assert order.index("/etc") < order.index("/etc/hostname") < order.index("/etc/resolv.conf") + 2
    assert len(order) == len(set(order))
    assert order.index("/data") < order.index("/data/deep")
    by_destination = {mount["destination"]: mount for mount in mounts}
    assert by_destination["/etc/hosts"]["source"] == "/h"
    assert by_destination["/dev/shm"]["type"] == "bind"
    assert by_destination["/etc/hostname"] == {
        "destination": "/etc/hostname", "type": "file", "source": "hostname", "options": [],
    }  # fmt: skip
    assert "ro" in by_destination["/data/deep"]["options"]
    assert "rw" in by_destination["/data"]["options"]


def test_the_specification_is_one_that_the_low_level_accepts() -> None:
    from runtime.oci.spec import parse

    wish = CreateRequest("image", ("sh",), memory=64 << 20, cpu_quota=50_000, pids=7, terminal=True)
    for network in ("bridge", "none", "host"):
        built = spec.build("a" * 64, wish._replace(network=network), {"Env": ["A=1"]}, hostname="box")
        parsed = parse({**built, "root": {**built["root"], "path": "/r"}})
        assert ("network" in parsed.namespaces) == (network != "host")
        assert parsed.resources.pids_limit == 7
        assert not parsed.process.capabilities.inheritable


def test_frames_survive_any_cut() -> None:
    sent = [
        frames.pack(frames.OUT, b"x" * 1000, process=7), frames.pack_json(frames.EXIT, {"code": 3}),
        frames.pack_window(24, 80), frames.pack_number(frames.SIGNAL, 15), frames.pack(frames.IN_END),
    ]  # fmt: skip
    whole = b"".join(sent)
    for step in (1, 2, 5, 7, 999, len(whole)):
        splitter = frames.Splitter()
        got = [frame for at in range(0, len(whole), step) for frame in splitter.feed(whole[at : at + step])]
        assert [frames.pack(frame.kind, frame.payload, process=frame.process) for frame in got] == sent
    assert got[1].json() == {"code": 3}
    assert got[2].window() == (24, 80)
    assert got[3].number() == 15


def test_a_frame_of_a_mad_length_is_refused() -> None:
    with pytest.raises(ValueError, match="4294967295"):
        list(frames.Splitter().feed(b"\x03\0\0\0\0\xff\xff\xff\xff"))


def test_states_go_the_drawn_ways_only(tmp_path: Path) -> None:
    created = State(Status.CREATING).to(Status.CREATED)
    running = created.to(Status.RUNNING, pid=7)
    assert running.to(Status.EXITED, exit_code=3).exit_code == 3
    assert State(Status.EXITED).to(Status.RUNNING).status is Status.RUNNING
    for here, there in (
        (Status.EXITED, Status.CREATED), (Status.CREATED, Status.EXITED), (Status.RUNNING, Status.CREATED),
        (Status.EXITED, Status.CREATING), (Status.CREATING, Status.RUNNING),
    ):  # fmt: skip
        with pytest.raises(StateError):
            State(here).to(there)
    state.save(str(tmp_path), running)
    assert state.load(str(tmp_path), str(tmp_path / "missing")) == running
    state.keep(str(tmp_path), created)
    assert state.load(str(tmp_path / "missing"), str(tmp_path)) == state.rested(str(tmp_path)) == created


@pytest.mark.parametrize("write", [records.write, records.keep])
def test_a_record_that_was_cut_is_none_that_is_missing(write: Callable[[str, object], None], tmp_path: Path) -> None:
    path = tmp_path / "record"
    assert records.read(str(path)) is None
    write(str(path), {"a": 1})
    assert records.read(str(path)) == {"a": 1}
    assert os.listdir(tmp_path) == ["record"]
    for damaged in ("", '{"a"'):
        path.write_text(damaged)
        with pytest.raises(DamagedRecord, match=f"^{path} is damaged: it is "):
            records.read(str(path))


def test_names() -> None:
    for good in ("ab", "a.b", "0_x-y"):
        assert names.check_name(good) == good
    for bad in ("", "a", ".ab", "a/b", "ä b", "a b", "ab\n"):
        with pytest.raises(InvalidValue):
            names.check_name(bad)
    for bad in ("", "-a", "a..b", "a b", "x" * 65, "a/b", "a\n"):
        with pytest.raises(InvalidValue):
            names.check_hostname(bad)
    assert names.check_name(names.new_name())
    assert len(names.new_id()) == 64


def test_a_fault_crosses_processes_by_its_name() -> None:
    fault = by_name("TaskLost", "why")
    assert isinstance(fault, TaskLost)
    assert str(fault) == "why"
    for other in ("OSError", "os", "annotations", "nothing"):
        assert type(by_name(other, "why")) is RuntimeFault


def test_a_log_is_the_same_whatever_the_pieces(tmp_path: Path) -> None:
    """Lines of all lengths around the longest, bytes of all kinds, characters cut at every place: each line is an
    object by itself, and reading gives back what was written."""
    texts = [b"", b"plain", "ü€😀".encode(), b"\xe2\x82", b"\xff\0\x1b\"\\n", b"\xed\xa0\x80", "\u2028\r".encode()]
    texts += [b"x" * (logs.LINE + more) for more in (-2, -1, 0, 1)] + ["€".encode() * logs.LINE, b"", b"last"]
    texts += [b"plain \\ \" \r \t \x1b[0m \\n\\\\", b"", b"~ " * 20, b"\x7f"]
    data = b"\n".join(texts)
    for size in (13, 4096, 65536, len(data)):
        path = tmp_path / f"log-{size}"
        writer = logs.Writer(str(path))
        for at in range(0, len(data), size):
            writer.write("stdout", data[at : at + size])
        writer.close()
        with logs.Reader(str(path)) as reader:
            entries = [entry.data for entry in reader.entries()]
        assert b"".join(entries) == data
        expected = []
        for line in [*(text + b"\n" for text in texts[:-1]), texts[-1]]:
            expected += [line[at : at + logs.LINE] for at in range(0, len(line), logs.LINE)]
        assert entries == expected
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert all({*record} == {"log", "stream", "time"} for record in records)
        # As json.dumps writes it, whichever way it was written.
        assert path.read_text().splitlines() == [json.dumps(record, separators=(",", ":")) for record in records]


def test_a_state_that_an_earlier_version_recorded(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"status": "exited", "pid": 0, "shim_pid": 0, "exit_code": 3}')
    assert state.rested(str(tmp_path)) == State(Status.EXITED, exit_code=3)
