"""What a review of pulling and pushing found: one test a finding."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import InvalidValue, RegistryError, sentence
from runtime.registry import login
from runtime.registry.credentials import Login
from tests.runtime.registry.conftest import Puller
from tests.runtime.registry.lying import Honest, Made, Server, digest_of, made

Lying = Callable[..., Server]


class Thief(Honest):
    """A store that a registry redirects to, and that asks who we are."""

    def do_GET(self) -> None:
        self.note()
        if self.path.startswith("/token"):
            return self.answer(200, b'{"token": "t"}')
        challenge = f'Bearer realm="http://{self.server.host}/token",service="s"'
        return self.error(401, "UNAUTHORIZED", "who are you?", WWW_Authenticate=challenge)


class Redirects(Honest):
    def blob(self, digest: str) -> None:
        self.answer(307, b"", Location=f"{self.server.more['to']}/{digest}")


class RedirectsAll(Honest):
    def do_GET(self) -> None:
        self.note()
        self.answer(307, b"", Location=f"{self.server.more['to']}{self.path}")


def test_a_password_is_the_registry_s_and_not_whom_it_redirects_to(
    puller: Puller, lying: Lying, config: Path
) -> None:
    """CVE-2020-15157: a 401 of a store behind a redirect named the token server that the password went to."""
    thief = lying(Thief)
    registry, front = (lying(handler, to=f"http://{thief.host}") for handler in (Redirects, RedirectsAll))
    mine = Login("me", "secret")
    puller.access().credentials.keep(registry.host, mine)
    puller.refused(f"{registry.host}/x")
    with pytest.raises(RegistryError):
        login.check(puller.access(), front.host, mine)
    assert thief.asked, "they were redirected"
    assert not [path for path in thief.paths() if path.startswith("/token")]
    assert not [headers for _, _, headers in thief.asked if "Authorization" in headers]


LONG = "a" * 64 + ".example"


class NoAddress(Honest):
    """Names addresses that are none, by the header that the test asks for."""

    def manifest(self, reference: str) -> None:
        to = self.server.more["to"]
        if self.server.more["by"] == "realm":
            return self.error(401, "UNAUTHORIZED", "no", WWW_Authenticate=f'Bearer realm="{to}",service="s"')
        return self.answer(307, b"", Location=to)


@pytest.mark.parametrize("by", ["Location", "realm"])
@pytest.mark.parametrize("to", ["http://[::1", "http://[bad]/x", "http://a..b/", f"http://{LONG}/", "http://:80/"])
def test_an_address_that_is_none(puller: Puller, lying: Lying, by: str, to: str) -> None:
    """urllib raises ValueError for some of them, and the codec "idna" UnicodeError: internal errors once."""
    server = lying(NoAddress, by=by, to=to)
    assert "no web address" in puller.refused(f"{server.host}/x")


def test_a_host_that_can_be_none(puller: Puller) -> None:
    with pytest.raises(InvalidValue, match="is no registry"):
        puller.pull(f"{LONG}/x")


@pytest.mark.parametrize("life", ["1" + "0" * 400, "1e999", "NaN"])
def test_a_token_that_says_it_lives_for_ever(puller: Puller, lying: Lying, life: str) -> None:
    class Tokens(Honest):
        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                return self.answer(200, b'{"token": "t", "expires_in": %s}' % life.encode())
            if "Authorization" not in self.headers:
                realm = f'Bearer realm="http://{self.server.host}/token",service="s"'
                return self.error(401, "UNAUTHORIZED", "no", WWW_Authenticate=realm)
            return super().do_GET()

    name = f"{lying(Tokens).host}/x"
    if life.isdigit():
        assert "answers with no token" in puller.refused(name)
    else:
        puller.pull(name)


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"x"], ids=["interim answers", "a header"])
def test_a_head_without_an_end(puller: Puller, config: Path, piece: bytes) -> None:
    """Something comes all the time, so no recv(2) ever waits for long."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        (config / "registries.toml").write_text(f'[registry."{host}"]\ntimeout = 0.2\n')

        def serve() -> None:
            for _ in range(5):  # as often as it is tried
                connection, _ = listening.accept()
                with connection, pytest.raises(OSError):
                    connection.recv(65536)
                    connection.sendall(b"" if piece.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nX: ")
                    while not stop.wait(0.001):
                        connection.sendall(piece)
                    raise OSError

        stop = threading.Event()
        server = threading.Thread(target=serve)
        server.start()
        try:
            assert "does not answer within 0.2 seconds" in puller.refused(f"{host}/x")
            assert len(puller.pauses) == 4
        finally:
            stop.set()
            server.join()


def test_an_error_writes_no_escape_sequences() -> None:
    """Whatever a registry says reaches the terminal as characters that can be seen."""
    assert sentence(RegistryError("it has \x1b[2J/\x9b1m\x07\nü \udcff")) == r"it has \x1b[2J/\x9b1m\x07 ü \udcff"
    assert sentence(OSError(2, "No such file", b"a\xff\x1b")) == r"a\udcff\x1b: No such file"


def test_a_mirror_whose_image_is_refused(puller: Puller, lying: Lying, config: Path) -> None:
    """Its layer is not the one of its diff id; the registry itself has a sound image."""
    sound = made()
    content, manifest = json.loads(sound.config), json.loads(sound.manifest)
    content["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    data = json.dumps(content).encode()
    manifest["config"] |= {"digest": digest_of(data), "size": len(data)}
    bad = Made(
        json.dumps(manifest).encode(), sound.media_type, data, sound.layers, {**sound.blobs, digest_of(data): data}
    )
    mirror, own = lying(Honest, bad), lying(Honest, sound)
    (config / "registries.toml").write_text(f'[registry."{own.host}"]\nmirrors = ["{mirror.host}"]\n')
    assert puller.pull(f"{own.host}/x").digest == sound.digest
    assert f"mirror {mirror.host}: cannot unpack layer" in puller.said.getvalue()
    assert [image.manifest for image in puller.store.list()] == [sound.digest]
