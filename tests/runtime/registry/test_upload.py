"""Blobs to a registry: in one piece and in chunks, over lines that break."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator

import pytest

from runtime.errors import RegistryError
from runtime.images.document import LAYER, Descriptor
from runtime.images.reference import parse
from runtime.registry import upload as uploading
from runtime.registry.access import Access
from runtime.registry.client import Client
from runtime.registry.retries import Patience
from tests.runtime.registry.conftest import Registry
from tests.runtime.registry.lying import Honest, Server, digest_of

CHUNK = 1000
DATA = random.Random(7).randbytes(3 * CHUNK + 500)
BLOB = Descriptor(LAYER, digest_of(DATA), len(DATA))
Lying = Callable[..., Server]


@pytest.fixture
def at(config: object) -> Callable[[str], Client]:
    return lambda host: next(_clients(host))


def _clients(host: str) -> Iterator[Client]:
    access = Access(os.environ, Patience(sleep=lambda seconds: None))
    reference = parse(f"{host}/uploads/x:1")
    with access.client(access.registries.endpoints(reference.registry)[-1], reference, "push") as client:
        yield client


@pytest.fixture
def send(config: object) -> Callable[..., list[int]]:
    """Upload DATA; the positions that were told."""

    def send(host: str, chunk: int = CHUNK) -> list[int]:
        told: list[int] = []
        clients = _clients(host)
        try:
            uploading.upload(next(clients), BLOB, lambda: io.BytesIO(DATA), told.append, chunk=chunk)
        finally:
            clients.close()  # type: ignore[attr-defined]
        return told

    return send


@pytest.mark.parametrize("chunk", [CHUNK, len(DATA), 10 * CHUNK, CHUNK // 2])
def test_to_a_real_registry(send: Callable[..., list[int]], registry: Registry, chunk: int) -> None:
    assert send(registry.host, chunk)[-1] == len(DATA)
    assert registry.blob(BLOB.digest).read_bytes() == DATA
    registry.blob(BLOB.digest).unlink()


def test_chunks(send: Callable[..., list[int]], lying: Lying) -> None:
    server = lying(Honest)
    send(server.host)
    assert server.pushed == {BLOB.digest: DATA}
    assert [method for method, _, _ in server.asked] == ["POST", "PATCH", "PATCH", "PATCH", "PUT"]
    assert [headers["Content-Range"] for _, _, headers in server.asked[1:]] == [
        "0-999", "1000-1999", "2000-2999", "3000-3499"
    ]  # fmt: skip
    assert all("?state=x" in path for _, path, _ in server.asked[1:]), "what a Location has is kept"


class LargerChunks(Honest):
    def begin(self, status: int, **headers: str) -> None:
        super().begin(status, **headers, OCI_Chunk_Min_Length="2000")


def test_the_registry_may_want_larger_chunks(send: Callable[..., list[int]], lying: Lying) -> None:
    server = lying(LargerChunks)
    send(server.host)
    assert len(server.paths("PATCH")) == 1


class BreaksOff(Honest):
    """Takes half of the second chunk, and closes."""

    def do_PATCH(self) -> None:
        if len(self.server.paths("PATCH")) == 1:
            self.note()
            held = self.upload()
            held += self.rfile.read(CHUNK // 2)
            return self.hang_up()
        return super().do_PATCH()


def test_a_broken_upload_is_gone_on_with(send: Callable[..., list[int]], lying: Lying) -> None:
    server = lying(BreaksOff)
    send(server.host)
    assert server.pushed == {BLOB.digest: DATA}
    assert len(server.paths("POST")) == 1
    ranges = [headers["Content-Range"] for method, _, headers in server.asked if method == "PATCH"]
    assert ranges[:3] == ["0-999", "1000-1999", "1500-2499"]


class Forgets(BreaksOff):
    def upload_status(self) -> None:
        self.error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")


def test_a_forgotten_upload_begins_anew(send: Callable[..., list[int]], lying: Lying) -> None:
    server = lying(Forgets)
    send(server.host)
    assert server.pushed == {BLOB.digest: DATA}
    assert len(server.paths("POST")) == 2


class OutOfStep(Honest):
    """Refuses the second chunk once: it has another count."""

    def do_PATCH(self) -> None:
        if len(self.server.paths("PATCH")) == 1:
            self.note()
            self.read()
            return self.answer(416, b"", Location=self.path, Range="0-999")
        return super().do_PATCH()


def test_a_registry_that_counts_otherwise_is_asked(send: Callable[..., list[int]], lying: Lying) -> None:
    server = lying(OutOfStep)
    send(server.host)
    assert server.pushed == {BLOB.digest: DATA}


class Full(Honest):
    def do_PATCH(self) -> None:
        self.note()
        self.read()
        self.error(413, "SIZE_INVALID", "it is full")


def test_a_refused_upload_is_cancelled(send: Callable[..., list[int]], lying: Lying) -> None:
    server = lying(Full)
    with pytest.raises(RegistryError, match=r"answers 413 for the blob .*it is full"):
        send(server.host)
    assert len(server.paths("DELETE")) == 1


class AlwaysBreaksOff(Honest):
    def do_PATCH(self) -> None:
        self.note()
        self.hang_up()


def test_not_for_ever(send: Callable[..., list[int]], lying: Lying) -> None:
    server = lying(AlwaysBreaksOff)
    with pytest.raises(RegistryError, match="closed the connection"):
        send(server.host)
    assert len(server.paths("PATCH")) == 5


class LeadsAstray(Honest):
    def begin(self, status: int, **headers: str) -> None:
        if "Location" in headers:
            headers["Location"] = str(self.server.more["to"])
        super().begin(status, **headers)


@pytest.mark.parametrize("to", ["file:///tmp/x", "http://h\xe9/", "ftp://x/"])
def test_a_location_that_is_none(send: Callable[..., list[int]], lying: Lying, to: str) -> None:
    with pytest.raises(RegistryError, match="where none can go"):
        send(lying(LeadsAstray, to=to).host)
