"""The control socket's protocol, without a mount."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import in_child
from tests.trees import Dir, File, Symlink, Tree, build
from unionfs.transport import control


def facts() -> dict[str, object]:
    return {"path": "\udcff\n", "nodes": 7}


def broken(_: bytes) -> dict[str, object]:
    raise ValueError("a mistake of ours")


ANSWERS: control.Answers = {b"info": lambda _: facts(), b"echo": lambda said: {"said": said.decode()}}
BROKEN: control.Answers = {b"info": broken}


def test_answers() -> None:
    assert control.answer(b"", BROKEN) == b""
    assert json.loads(control.answer(b"info\n", ANSWERS)) == facts()
    assert control.answer(b"info\n", ANSWERS).isascii()
    assert json.loads(control.answer(b"echo a b\n", ANSWERS)) == {"said": "a b"}
    assert json.loads(control.answer(b"echo\n", ANSWERS)) == {"said": ""}
    for request in (b"info", b"inf", b" info\n", b"echo a", b"\n", b"info\ninfo\n", b"\xff" * 1000):
        assert "not known" in json.loads(control.answer(request, ANSWERS))["error"]


def test_a_mistake_in_the_facts_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    assert "see its log" in json.loads(control.answer(b"info\n", BROKEN))["error"]
    assert "a mistake of ours" in caplog.text


@pytest.fixture
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE_SECONDS", request.param)


@pytest.fixture
def client() -> Iterator[socket.socket]:
    """The client's end; the server's is in a thread that must end within the test."""
    server, client = socket.socketpair()
    thread = threading.Thread(target=control.serve_one, args=[server, ANSWERS])
    thread.start()
    with client:
        client.settimeout(20)
        yield client
        thread.join(20)
        assert not thread.is_alive()
        assert server.fileno() == -1


def read_all(client: socket.socket) -> bytes:
    said = b""
    while part := client.recv(4096):
        said += part
    return said


def test_one_client(client: socket.socket) -> None:
    for byte in b"info\n":
        client.send(bytes([byte]))
    assert json.loads(read_all(client)) == facts()


@pytest.mark.parametrize("patience", [3600.0], indirect=True)
def test_a_client_that_says_nothing(patience: None, client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b""


def test_a_client_that_says_too_much(client: socket.socket) -> None:
    client.sendall(b"x" * 64)
    assert "not known" in json.loads(read_all(client))["error"]


def test_a_client_that_goes_before_the_answer(client: socket.socket) -> None:
    client.sendall(b"info\n")
    client.close()


@pytest.mark.parametrize("patience", [0.05], indirect=True)
@pytest.mark.parametrize("begins", [b"", b"inf"])
def test_a_client_that_stalls(patience: None, client: socket.socket, begins: bytes) -> None:
    client.sendall(begins)
    assert read_all(client) == b""


@pytest.mark.parametrize("patience", [0.05], indirect=True)
def test_a_client_that_does_not_read(patience: None) -> None:
    server, client = socket.socketpair()
    with client:
        client.sendall(b"info\n")
        control.serve_one(server, {b"info": lambda _: {"paths": "x" * (4 << 20)}})


@pytest.fixture
def announcement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[control.Announcement]:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(control, "directory", lambda: str(tmp_path / "run" / "mounts"))
    one = control.Announcement("0:7")
    one.socket.setblocking(True)
    yield one
    one.withdraw()


def test_finding_and_asking(announcement: control.Announcement) -> None:
    def serve() -> None:
        for _ in range(3):
            connection, _ = announcement.socket.accept()
            control.serve_one(connection, ANSWERS)

    thread = threading.Thread(target=serve)
    thread.start()
    said = control.ask("0:7", control.INFO)
    assert said is not None
    assert json.loads(said) == facts()
    server = control.find("0:7")
    assert server is not None
    assert server.pid == os.getpid()
    server.close()
    assert control.ask("0:7", b"nonsense\n")
    thread.join(20)


def test_there_is_nobody(announcement: control.Announcement, monkeypatch: pytest.MonkeyPatch) -> None:
    assert control.ask("0:77", control.INFO) is None
    assert control.find("0:77") is None
    announcement.socket.close()  # as a server that was killed leaves it
    assert control.ask("0:7", control.INFO) is None
    assert control.find("0:7") is None
    monkeypatch.setattr(control, "directory", lambda: "/nonexistent")
    assert control.ask("0:7", control.INFO) is None


def test_a_server_that_does_not_answer(announcement: control.Announcement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_CLIENT_PATIENCE_SECONDS", 0.05)
    with pytest.raises(TimeoutError):
        control.ask("0:7", control.INFO)


USER, OTHER = 2001, 2002
THESIS = Dir({"thesis": File("thesis", uid=USER)}, uid=USER)
# What others, or the user himself, put where his runtime directory is said to be.
TRAPS: dict[str, Tree] = {
    "a link of another's": {"fuse-aufs": Dir({"mounts": Symlink("../home")}, uid=OTHER)},
    "a link": {"fuse-aufs": Dir({"mounts": Symlink("../home")}, uid=USER)},
    "a link above": {"fuse-aufs": Symlink("home")},
    "another's": {"fuse-aufs": Dir({"mounts": Dir({}, mode=0o777, uid=OTHER)}, mode=0o777, uid=OTHER)},
    "another's below": {"fuse-aufs": Dir({"mounts": Dir({}, mode=0o777, uid=OTHER)}, uid=USER)},
    "open to all": {"fuse-aufs": Dir({"mounts": THESIS}, mode=0o777, uid=USER)},
    "open to a group": {"fuse-aufs": Dir({"mounts": Dir({}, mode=0o770, uid=USER)}, uid=USER)},
    "a file": {"fuse-aufs": File("")},
}  # fmt: skip


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where everybody may make something, as in /tmp; the working directory, too."""
    with tempfile.TemporaryDirectory(prefix="control-") as top:
        os.chmod(top, 0o1777)
        build(top, {"home": THESIS})
        monkeypatch.chdir(top)
        yield top


def announced(runtime: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a user's server that announced itself, and withdrew."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)

    def announce() -> str:
        one = control.Announcement("0:7.1")
        one.withdraw()
        return one.path

    address: str = in_child(announce, uid=USER)
    return address


@pytest.mark.needs("root")
@pytest.mark.parametrize("trap", TRAPS)
def test_a_directory_that_is_not_his_alone(shared: str, trap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build(shared, TRAPS[trap])
    before = everything(shared)
    assert announced(shared, monkeypatch).startswith("\0")
    assert everything(shared) == before


@pytest.mark.needs("root")
@pytest.mark.parametrize("runtime", ["", ".", "home", "nonexistent"])
def test_no_runtime_directory(shared: str, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(shared)
    assert announced(runtime, monkeypatch).startswith("\0")
    assert everything(shared) == before


@pytest.mark.needs("root")
def test_only_sockets_are_swept(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = f"{shared}/home"
    assert announced(home, monkeypatch) == f"{home}/fuse-aufs/mounts/0:7.1"
    mounts = f"{home}/fuse-aufs/mounts"
    build(mounts, {"file": "", "link": Symlink("dead"), "directory": {}})
    os.mkfifo(f"{mounts}/fifo")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{mounts}/dead")
        os.chown(f"{mounts}/dead", USER, USER)
    assert announced(home, monkeypatch) == f"{mounts}/0:7.1"
    assert sorted(os.listdir(mounts)) == ["directory", "fifo", "file", "link"]


@pytest.mark.needs("root")
def test_a_path_too_long_for_a_client(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = f"{shared}/home/{'x' * 100}"
    build(long, {})
    os.chown(long, USER, USER)
    assert announced(long, monkeypatch).startswith("\0")


def everything(top: str) -> list[tuple[str, list[str], list[str]]]:
    return sorted((path, sorted(directories), sorted(files)) for path, directories, files in os.walk(top))
