"""registries.toml, mirrors, proxies, patience."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.errors import InvalidValue, RegistryError
from runtime.registry.config import Endpoint, Host, Registries, normal
from runtime.registry.failures import Answered, Unreachable
from runtime.registry.proxies import Proxies, Proxy
from runtime.registry.retries import Patience, retried, retry_after
from tests.runtime.conftest import Runtime
from tests.runtime.registry.conftest import Puller, Registry
from tests.runtime.registry.lying import Honest, Made, Server, digest_of, made


def _registries(config: Path, text: str) -> Registries:
    (config / "registries.toml").write_text(text)
    return Registries(os.environ)


def _server(scheme: str, host: str, port: int, ca: str = "", timeout: float = 30.0) -> Host:
    return Host(scheme, host, port, ca, timeout)


@pytest.mark.parametrize(
    ("name", "server"),
    [
        ("docker.io", _server("https", "registry-1.docker.io", 443)),
        ("r.example", _server("https", "r.example", 443)),
        ("r.example:5000", _server("https", "r.example", 5000)),
        ("localhost:5000", _server("http", "localhost", 5000)),
        ("127.0.0.1", _server("http", "127.0.0.1", 80)),
        ("127.9.9.9:1", _server("http", "127.9.9.9", 1)),
        ("[::1]:5000", _server("http", "::1", 5000)),
        ("[fe80::1]:5000", _server("https", "fe80::1", 5000)),
        ("localhost.example", _server("https", "localhost.example", 443)),
        ("127.0.0.1.example", _server("https", "127.0.0.1.example", 443)),
    ],
)
def test_where_a_registry_is(config: Path, name: str, server: Host) -> None:
    assert Registries(os.environ).endpoints(name) == [Endpoint(name, server, mirror=False)]


def test_what_the_file_says(config: Path) -> None:
    registries = _registries(config, """
        [registry."index.docker.io"]
        mirrors = ["m.example", "http://n.example:81/", "https://localhost:5000"]
        [registry."m.example"]
        ca = "/ca.pem"
        timeout = 1.5
        [registry."r.example:5000"]
        insecure = true
        [registry.localhost]
        insecure = false
    """)
    assert registries.endpoints("docker.io") == [
        Endpoint("m.example", _server("https", "m.example", 443, "/ca.pem", 1.5), mirror=True),
        Endpoint("n.example:81", _server("http", "n.example", 81), mirror=True),
        Endpoint("localhost:5000", _server("https", "localhost", 5000), mirror=True),
        Endpoint("docker.io", _server("https", "registry-1.docker.io", 443), mirror=False),
    ]
    assert registries.server("r.example:5000").url == "http://r.example:5000"
    assert registries.server("r.example").url == "https://r.example"
    assert registries.server("localhost").url == "https://localhost"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('registrys = 1', 1, "unknown key 'registrys'"),
        ('registry = 1', 1, "write tables"),
        ('[registry."a.b"]\nca = "/x"\nmirror = ["x"]', 3, "unknown key 'mirror'"),
        ('[registry."a.b"]\nca = "/x"\n[registry."c.d"]\nca = "x"', 4, "absolute path"),
        ('[registry."a.b"]\n\ninsecure = "yes"', 3, "true or false"),
        ('[registry."a.b"]\nmirrors = "m"', 2, "is a list"),
        ('[registry."a.b"]\nmirrors = ["ftp://m"]', 2, "is no mirror"),
        ('[registry."a.b"]\nmirrors = ["m.example/path"]', 2, "is no mirror"),
        ('[registry."a.b"]\ntimeout = 0', 2, "number of seconds"),
        ('[registry."a.b"]\ntimeout = true', 2, "number of seconds"),
        ('\n[registry."a b"]', 2, "is no registry"),
        ('[registry."a.b:99999"]', 1, "is no registry"),
    ],
)  # fmt: skip
def test_what_the_file_cannot_say(config: Path, text: str, line: int, why: str) -> None:
    with pytest.raises(RegistryError) as raised:
        _registries(config, text)
    assert str(raised.value).startswith(f"{config}/registries.toml, line {line}: ")
    assert why in str(raised.value)


def test_what_is_no_toml(config: Path, fresh: Runtime) -> None:
    (config / "registries.toml").write_text("x = 1\n[registry.\n")
    assert re.search(r"registries\.toml: .*line 2", fresh.refused("pull", "-q", "x", code=1))
    (config / "registries.toml").write_bytes(b"\xff")
    assert "registries.toml: " in fresh.refused("pull", "-q", "x", code=1)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "docker.io"), ("https://index.docker.io/v1/", "docker.io"), ("index.docker.io", "docker.io"),
        ("https://r.example:1/v2/", "r.example:1"), ("r.example", "r.example"),
    ],
)  # fmt: skip
def test_ways_to_write_a_registry(text: str, name: str) -> None:
    assert normal(text) == name


# Mirrors.


def test_a_mirror_is_asked_first(new_runtime: Callable[[], Runtime], new_registry: Callable[..., Registry],
                                 config: Path, rootfs_tar: Path) -> None:
    """A docker-registry as pull-through cache; when it is gone, the registry itself is asked, and it is said."""
    origin = new_registry()
    name = f"{origin.host}/team/box:1"
    one, other, third = new_runtime(), new_runtime(), new_runtime()
    one("import", "-c", 'CMD ["cat", "/etc/motd"]', rootfs_tar, name)
    one("push", name)
    mirror = new_registry(extra=f"proxy:\n  remoteurl: http://{origin.host}\n")
    toml = f'[registry."{origin.host}"]\nmirrors = ["localhost:1", "{mirror.host}"]\n'
    (config / "registries.toml").write_text(toml)
    pulled = other("pull", name)
    assert "mirror localhost:1: localhost:1: connection refused" in pulled
    assert f"Status: Downloaded newer image for {name}\n" in pulled
    assert len(mirror.requests("GET")) >= 3
    assert other("run", "--rm", "--network=none", name) == "hello from the image\n"

    origin.close()
    third("pull", "-q", name)  # the mirror has it all
    mirror.close()
    assert f"localhost:{origin.port}: connection refused" in third.refused("pull", "-q", f"{origin.host}/team/box:2")


class HasNoBlobs(Honest):
    def blob(self, digest: str) -> None:
        self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")


def test_a_mirror_that_fails_midway(puller: Puller, lying: Callable[..., Server], config: Path) -> None:
    image = made((1000, 2000))
    mirror, origin = lying(HasNoBlobs, image), lying(Honest, image)
    _registries(config, f'[registry."{origin.host}"]\nmirrors = ["{mirror.host}"]\n')
    puller.pull(f"{origin.host}/x")
    said = puller.said.getvalue()
    assert f"mirror {mirror.host}: blob sha256:" in said and "; going on without it\n" in said
    assert said.count("Pulling from x\n") == 1
    assert said.count("Pulling fs layer\n") == 2


def test_a_mirror_gets_its_own_password_only(puller: Puller, lying: Callable[..., Server], config: Path) -> None:
    from runtime.registry.credentials import Login

    class Asks(Honest):
        def do_GET(self) -> None:
            self.note()
            self.error(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="x"')

    mirror, origin = lying(Asks), lying(Honest)
    _registries(config, f'[registry."{origin.host}"]\nmirrors = ["{mirror.host}"]\n')
    puller.access().credentials.keep(origin.host, Login("me", "secret"))
    puller.pull(f"{origin.host}/x")
    assert mirror.asked and all("Authorization" not in headers for _, _, headers in mirror.asked)
    puller.access().credentials.keep(mirror.host, Login("me", "mirror's"))
    puller.pull(f"{origin.host}/x")
    shown = {headers["Authorization"] for _, _, headers in mirror.asked if "Authorization" in headers}
    assert shown == {"Basic " + base64.b64encode(b"me:mirror's").decode()}


# Proxies.


@pytest.mark.parametrize(
    ("environ", "host", "proxied"),
    [
        ({}, "r.example", False),
        ({"HTTPS_PROXY": "http://p:3128"}, "r.example", True),
        ({"https_proxy": "p:3128"}, "r.example", True),
        ({"HTTP_PROXY": "http://p:3128"}, "r.example", False),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "*"}, "r.example", False),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "x, r.example"}, "r.example", False),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": ".example"}, "r.example", False),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "example"}, "r.example", False),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "ample"}, "r.example", True),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "r.example:443"}, "r.example", False),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "r.example:80"}, "r.example", True),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": "10.0.0.0/8"}, "10.1.2.3", False),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": "10.0.0.0/8"}, "11.1.2.3", True),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": "fe80::1"}, "fe80::1", False),
    ],
)
def test_which_proxy(environ: dict[str, str], host: str, proxied: bool) -> None:
    found = Proxies(environ).of(_server("https", host, 443))
    assert found == (Proxy("p", 3128, "") if proxied else None)


def test_a_proxy_with_a_password() -> None:
    proxy = Proxies({"https_proxy": "http://me:a%3Ab@p"}).of(_server("https", "r.example", 443))
    assert proxy == Proxy("p", 80, "Basic " + base64.b64encode(b"me:a:b").decode())


@pytest.mark.parametrize("text", ["socks5://p:1", "http://", "http://p:x"])
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(RegistryError, match="HTTPS_PROXY is"):
        Proxies({"HTTPS_PROXY": text}).of(_server("https", "r.example", 443))


def test_by_a_proxy(
    puller: Puller, lying: Callable[..., Server], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that only the proxy knows; and https, which goes through a tunnel."""

    class Forwards(Honest):
        """A proxy that is the registry as well: it is asked for whole URLs (RFC 9112, 3.2.2)."""

        def do_GET(self) -> None:
            assert self.path.startswith("http://r.invalid:80/") or self.path.startswith("http://r.invalid/"), self.path
            assert self.headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"u:p").decode()
            self.path = "/" + self.path.split("/", 3)[3]
            super().do_GET()

        def do_CONNECT(self) -> None:
            self.note()
            self.answer(502, b"")

    proxy = lying(Forwards)
    monkeypatch.setenv("http_proxy", f"http://u:p@{proxy.host}")
    monkeypatch.setenv("https_proxy", f"http://u:p@{proxy.host}")
    _registries(config, '[registry."r.invalid"]\ninsecure = true\n')
    puller.pull("r.invalid/x")
    assert "s.invalid by the proxy" in puller.refused("s.invalid/x").replace("cannot be reached ", "")
    assert proxy.paths("CONNECT") == ["s.invalid:443"]
    assert "no such host" not in puller.said.getvalue()


# Patience.


def _pauses(errors: list[RegistryError], attempts: int = 5) -> tuple[list[float], list[RegistryError]]:
    pauses: list[float] = []
    left = list(errors)

    def do() -> None:
        if left:
            raise left.pop(0)

    try:
        retried(do, Patience(attempts=attempts, first=1, most=10, sleep=pauses.append))
    except RegistryError as error:
        return pauses, [error]
    return pauses, []


def test_pauses_grow_to_a_bound() -> None:
    broken: list[RegistryError] = [Unreachable("broken", transient=True)] * 9
    pauses, raised = _pauses(broken, attempts=8)
    assert len(pauses) == 7 and raised == broken[:1]
    for pause, longest in zip(pauses, (1, 2, 4, 8, 10, 10, 10), strict=True):
        assert longest / 2 <= pause <= longest
    assert _pauses([Unreachable("refused", transient=False)])[0] == []


def test_a_wait_that_is_asked_for() -> None:
    def busy(status: int, after: float | None) -> list[RegistryError]:
        return [Answered("busy", status=status, retry_after=after)]

    assert _pauses(busy(429, 7.0)) == ([7.0], [])
    assert _pauses(busy(503, 10.0)) == ([10.0], [])
    assert _pauses(busy(429, 11.0))[0] == []
    assert _pauses(busy(429, None))[0] == []
    assert _pauses(busy(404, 1.0))[0] == []
    assert len(_pauses(busy(503, None))[0]) == 1


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 55 < (retry_after(later) or 0) <= 60
    assert [retry_after(text) for text in (None, "", "soon", "-1", "1e9", "Wed, 99 Oct 2015")] == [None] * 6


# Below HTTP.


@pytest.fixture
def mumbling() -> Iterator[Callable[[bytes], str]]:
    """`mumbling(data)`: the host of a server that answers everything with these bytes, and closes."""
    ends: list[Callable[[], None]] = []

    def start(data: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()

        def end() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            listener.close()

        ends.append(end)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for end in ends:
        end()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "does not speak HTTP"),
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "does not speak HTTP"),
        (b"HTTP/1.1 999999 OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "in the middle of an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "in the middle of an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", "is neither"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "answers 302"),
    ],
)  # fmt: skip
def test_what_is_no_http(puller: Puller, mumbling: Callable[[bytes], str], data: bytes, why: str) -> None:
    assert why in puller.refused(f"{mumbling(data)}/x")


Lying = Callable[..., Server]


LONG = "a" * 64 + ".example"


def test_a_host_that_can_be_none(puller: Puller) -> None:
    with pytest.raises(InvalidValue, match="is no registry"):
        puller.pull(f"{LONG}/x")


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
