"""Passwords, tokens and certificates, with a registry that wants them."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.errors import RegistryError
from runtime.registry import login
from runtime.registry.auth import Authorizer, Challenge, challenges
from runtime.registry.config import Endpoint, Host, Registries
from runtime.registry.credentials import Credentials, Login
from runtime.registry.transport import Transport
from tests.runtime.conftest import Runtime, Terminal
from tests.runtime.registry.authority import Authority, TokenServer
from tests.runtime.registry.conftest import Puller, Registry
from tests.runtime.registry.lying import CHUNK, Honest, Server, made

NewRegistry = Callable[..., Registry]


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    server = TokenServer(tmp_path / "tokens")
    yield server
    server.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def locked(new_registry: NewRegistry, tmp_path: Path) -> Registry:
    """A registry that wants a password: me, secret."""
    entry = subprocess.run(["htpasswd", "-nbBC", "4", "me", "secret"], check=True, capture_output=True, text=True)
    (tmp_path / "htpasswd").write_text(entry.stdout)
    return new_registry(extra=f"auth:\n  htpasswd:\n    realm: x\n    path: {tmp_path}/htpasswd\n")


def _keep(runtime: Runtime, name: str, rootfs_tar: Path) -> None:
    runtime("import", "-c", 'CMD ["cat", "/etc/motd"]', rootfs_tar, name)


@pytest.mark.needs("program:htpasswd")
def test_basic(fresh: Runtime, locked: Registry, config: Path, rootfs_tar: Path) -> None:
    name = f"{locked.host}/box"
    _keep(fresh, name, rootfs_tar)
    refused = fresh.call("push", name)
    assert refused.returncode == 1
    assert f"push access denied for {name}, repository does not exist or may require login" in refused.stderr

    wrong = fresh.call("login", "-u", "me", "--password-stdin", locked.host, stdin="wrong\n")
    assert wrong.returncode == 1
    assert wrong.stderr == f"runtime: {locked.host}: incorrect username or password\n"
    assert not (config / "auth.json").exists()

    assert fresh("login", "-u", "me", "--password-stdin", locked.host, stdin="secret\n").startswith("Login Succeeded")
    assert stat.S_IMODE((config / "auth.json").stat().st_mode) == 0o600
    auth = base64.b64encode(b"me:secret").decode()
    assert json.loads((config / "auth.json").read_text()) == {"auths": {locked.host: {"auth": auth}}}
    assert os.listdir(config) == ["auth.json"]
    fresh("push", name)
    fresh("rmi", name)
    assert fresh("run", "--rm", "--network=none", name) == "hello from the image\n"

    assert fresh("logout", locked.host) == f"Removing login credentials for {locked.host}\n"
    assert fresh("logout", locked.host) == f"Not logged in to {locked.host}\n"
    assert "pull access denied" in fresh.refused("pull", "-q", f"{name}:other")


@pytest.mark.needs("program:htpasswd")
def test_login_asks_without_echo(
    fresh: Runtime, locked: Registry, config: Path, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal(fresh.command("login", locked.host))
    screen.expect(f"Username for {locked.host}: ")
    screen.type("me\n")
    screen.expect("Password: ")
    screen.type("secret\n")
    assert "secret" not in screen.expect("Login Succeeded")
    assert screen.wait() == 0
    assert Credentials({"FUSE_AUFS_CONFIG": str(config)}).find(locked.host) == Login("me", "secret")


def test_login_refuses(fresh: Runtime, config: Path) -> None:
    assert "needs --username" in fresh.refused("login", "--password-stdin", "localhost:1")
    assert "without a terminal" in fresh.refused("login", "-u", "me", "localhost:1")
    assert "is no registry" in fresh.refused("login", "-u", "me", "local host")
    refused = fresh.call("login", "-u", "me", "--password-stdin", "localhost:1", stdin="x")
    assert "connection refused" in refused.stderr


def test_tokens(
    new_runtime: Callable[[], Runtime], new_registry: NewRegistry, tokens: TokenServer, config: Path, rootfs_tar: Path
) -> None:
    registry = new_registry(extra=tokens.config)
    one, other = new_runtime(), new_runtime()
    name = f"{registry.host}/public/box"
    _keep(one, name, rootfs_tar)
    assert "push access denied" in one.refused("push", "-q", name)
    wrong = one.call("login", "-u", "me", "--password-stdin", registry.host, stdin="wrong\n")
    assert wrong.stderr == f"runtime: {registry.host}: incorrect username or password (runtime login {registry.host})\n"
    one("login", "-u", "me", "--password-stdin", registry.host, stdin="secret\n")
    assert tokens.asked[-1] == {"service": ["tests"], "account": ["me"]}
    tokens.asked.clear()
    one("push", name)
    scope = ["repository:public/box:pull,push"]
    assert tokens.asked == [{"service": ["tests"], "account": ["me"], "scope": scope}], "one token for all"

    private = f"{registry.host}/private/box"
    _image(one, name, private)
    tokens.asked.clear()
    assert "Mounted from public/box" in one("push", private)
    assert tokens.asked[0]["scope"] == ["repository:private/box:pull,push", "repository:public/box:pull"]

    one("logout", registry.host)
    tokens.asked.clear()
    other("pull", name)
    assert tokens.asked == [{"service": ["tests"], "scope": ["repository:public/box:pull"]}], "without an account"
    assert "pull access denied" in other.refused("pull", "-q", private)


def _image(runtime: Runtime, source: str, name: str) -> None:
    from runtime.images.store import ImageStore

    ImageStore(f"{runtime.root}/images").tag(source, name)


class Expires(Honest):
    """Its own token server; the first token is good for three requests."""

    def do_GET(self) -> None:
        if self.path.startswith("/token"):
            self.note()
            with self.server.lock:
                self.server.more["tokens"] += 1
                number = self.server.more["tokens"]
            return self.answer(200, json.dumps({"access_token": f"t{number}", "expires_in": 300}).encode())
        uses = self.server.more["uses"]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with self.server.lock:
            uses[token] = uses.get(token, 0) + 1
        if not token or (token == "t1" and uses[token] > 3):
            realm = f'Bearer realm="http://{self.server.host}/token",service="s",scope="repository:x:pull"'
            self.note()
            return self.error(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=realm)
        return super().do_GET()


def test_a_token_that_expires_is_renewed_once_for_all_threads(puller: Puller, lying: Callable[..., Server]) -> None:
    server = lying(Expires, made([CHUNK] * 8), tokens=0, uses={})
    puller.pull(f"{server.host}/x")
    assert server.more["tokens"] == 2
    assert server.more["uses"]["t1"] > 3
    assert puller.pauses == []


class NeverContent(Honest):
    def do_GET(self) -> None:
        self.note()
        if self.path.startswith("/token"):
            return self.answer(int(self.server.more["status"]), self.server.more["body"])
        realm = self.server.more["realm"].replace("HERE", f"http://{self.server.host}/token")
        return self.error(401, "UNAUTHORIZED", "no", WWW_Authenticate=realm)


@pytest.mark.parametrize(
    ("realm", "status", "body", "why"),
    [
        ('Bearer realm="HERE"', 200, b'{"token": "t"}', "pull access denied"),
        ('Bearer realm="HERE"', 200, b"<html>", "answers with no token"),
        ('Bearer realm="HERE"', 200, b"[" * 100_000, "answers with no token"),
        ('Bearer realm="HERE"', 200, b'{"token": "a\\r\\nX: y"}', "answers with no token"),
        ('Bearer realm="HERE"', 200, b'{"token": 7}', "answers with no token"),
        ('Bearer realm="HERE"', 200, b"x" * (2 << 20), "more than"),
        ('Bearer realm="HERE"', 500, b'{"details": "broken"}', "answers 500 broken"),
        ('Bearer realm="HERE"', 401, b"", "gives no token without a login"),
        ('Bearer realm="ftp://x/"', 200, b"", "no web address"),
        ("Bearer", 200, b"", "no web address"),
        ('Basic realm="x"', 200, b"", "pull access denied"),
        ("Negotiate", 200, b"", "pull access denied"),
    ],
)  # fmt: skip
def test_token_servers_that_are_no_use(
    puller: Puller, lying: Callable[..., Server], realm: str, status: int, body: bytes, why: str
) -> None:
    server = lying(NeverContent, realm=realm, status=status, body=body)
    assert why in puller.refused(f"{server.host}/x")
    assert len(server.asked) <= 3, "it is not asked for ever"


def test_a_refresh_token_is_used(puller: Puller, lying: Callable[..., Server], config: Path) -> None:
    """What docker keeps as "identitytoken" is sent by POST (distribution's spec/auth/oauth.md)."""

    class Oauth(Expires):
        def do_POST(self) -> None:
            self.note()
            form = b"service=s&grant_type=refresh_token&client_id=fuse-aufs&refresh_token=r&scope=repository%3Ax%3Apull"
            assert self.read() == form
            self.answer(200, b'{"access_token": "t"}')

    server = lying(Oauth, tokens=0, uses={})
    entry = {"auth": base64.b64encode(b"me:").decode(), "identitytoken": "r"}
    (config / "auth.json").write_text(json.dumps({"auths": {server.host: entry}}))
    puller.pull(f"{server.host}/x")
    assert server.paths("POST") == ["/token"]


def test_no_password_is_sent_in_the_clear(config: Path) -> None:
    """The registry is spoken to by https and names a token server that is not."""
    transport = Transport(Registries(os.environ), {})
    endpoint = Endpoint("r.example", Host("https", "r.example", 443, "", 1), mirror=False)
    authorizer = Authorizer(transport, endpoint, Login("me", "secret"), ["repository:x:pull"])
    with pytest.raises(RegistryError, match="in the clear: refused"):
        authorizer.renew(['Bearer realm="http://r.example/token"'], "")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
         [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"})]),
        ('Basic realm="x", Bearer realm="y",error="insufficient_scope"',
         [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "error": "insufficient_scope"})]),
        ('Basic realm="a\\"b"', [("basic", {"realm": 'a"b'})]),
        ("Negotiate, BASIC realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Bearer realm="open', [("bearer", {})]), ("", []), ('="', []),
    ],
)  # fmt: skip
def test_challenges(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert challenges([header]) == [Challenge(*each) for each in found]


def test_tls(
    fresh: Runtime, new_registry: NewRegistry, authority: Authority, config: Path, rootfs_tar: Path
) -> None:
    registry = new_registry(http=authority.tls)
    name, toml = f"{registry.host}/tls", config / "registries.toml"
    _keep(fresh, name, rootfs_tar)
    assert "if it speaks TLS, write insecure = false" in fresh.refused("push", "-q", name), "localhost, so plain HTTP"
    toml.write_text(f'[registry."{registry.host}"]\ninsecure = false\n')
    refused = fresh.refused("push", "-q", name)
    assert f"the certificate of {registry.host} cannot be verified" in refused
    assert f'write ca = "FILE" under [registry."{registry.host}"] of {toml}' in refused
    toml.write_text(f'[registry."{registry.host}"]\nca = "{authority.ca}"\n')
    fresh("push", name)
    fresh("rmi", name)
    assert fresh("run", "--rm", "--network=none", name) == "hello from the image\n"
    toml.write_text(f'[registry."{registry.host}"]\nca = "{config}/missing"\n')
    assert f"{toml}: ca = '{config}/missing': No such file" in fresh.refused("pull", "-q", name)
    other = f"127.0.0.2:{registry.port}"
    toml.write_text(f'[registry."{other}"]\nca = "{authority.ca}"\n')
    assert "connection refused" in fresh.refused("pull", "-q", f"{other}/tls")


class LeavesTls(Honest):
    def blob(self, digest: str) -> None:
        self.answer(307, b"", Location=f"http://{self.server.more['store']}/v2/x/blobs/{digest}")

    def do_POST(self) -> None:
        self.note()
        self.answer(202, b"", Location=f"http://{self.server.more['store']}/v2/x/blobs/uploads/u")

    def do_HEAD(self) -> None:
        self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")


def test_what_begins_by_tls_stays_there(
    puller: Puller, lying: Callable[..., Server], authority: Authority, config: Path
) -> None:
    """Neither a redirect nor the place for an upload leads into the clear."""
    image = made()
    store = lying(Honest, image)
    server = lying(LeavesTls, image, tls=authority.context, store=store.host)
    (config / "registries.toml").write_text(f'[registry."{server.host}"]\nca = "{authority.ca}"\n')
    assert "in the clear: refused" in puller.refused(f"{server.host}/x")
    puller.pull(f"{store.host}/x")
    puller.store.tag(f"{store.host}/x", f"{server.host}/x")
    with pytest.raises(RegistryError, match="in the clear: refused"):
        puller.push(f"{server.host}/x")
    assert store.paths("PUT") == []


def test_tls_to_a_server_that_has_none(fresh: Runtime, registry: Registry, config: Path) -> None:
    (config / "registries.toml").write_text(f'[registry."{registry.host}"]\ninsecure = false\n')
    refused = fresh.refused("pull", "-q", f"{registry.host}/x")
    assert "does not speak TLS" in refused and "write insecure = true" in refused


def test_docker_s_own_file_is_read_and_never_written(fresh: Runtime, config: Path, tmp_path: Path) -> None:
    docker = tmp_path / "home/.docker/config.json"
    docker.parent.mkdir(parents=True)
    entry = {"auth": base64.b64encode(b"me:from docker").decode()}
    text = json.dumps({"auths": {"https://index.docker.io/v1/": entry, "r.example": {}}, "credsStore": "desktop"})
    docker.write_text(text)
    credentials = Credentials(os.environ)
    assert credentials.find("docker.io") == Login("me", "from docker")
    assert credentials.find("r.example") is None
    credentials.keep("docker.io", Login("me", "ours"))
    assert credentials.find("docker.io") == Login("me", "ours")
    assert credentials.forget("docker.io") and not credentials.forget("docker.io")
    assert f"{docker} has a login as well" in fresh("logout")
    assert docker.read_text() == text


@pytest.mark.parametrize("text", ["", "[]", '{"auths": 7}', '{"auths": {"r.example": {"auth": "%%%"}}}', "[" * 100_000])
def test_a_damaged_file_is_said_and_not_overwritten(config: Path, text: str) -> None:
    (config / "auth.json").write_text(text)
    with pytest.raises(RegistryError, match=r"auth\.json is damaged"):
        Credentials(os.environ).find("r.example")
    if "%" not in text:
        with pytest.raises(RegistryError, match=r"auth\.json is damaged"):
            Credentials(os.environ).keep("r.example", Login("me", "x"))
    assert (config / "auth.json").read_text() == text


def test_logins_at_once_lose_none(config: Path) -> None:
    (config / "auth.json.new").write_text("of a process that died here")
    threads = [
        threading.Thread(target=Credentials(os.environ).keep, args=(f"r{number}.example", Login("me", str(number))))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Credentials(os.environ).find(f"r{n}.example") for n in range(8)] == [Login("me", str(n)) for n in range(8)]
    assert os.listdir(config) == ["auth.json"]


def test_a_password_is_seen_nowhere(fresh: Runtime, lying: Callable[..., Server], config: Path) -> None:
    """Neither in a message nor in a traceback of --debug."""
    server = lying(NeverContent, realm='Bearer realm="HERE"', status=500, body=b"")
    Credentials(os.environ).keep(server.host, Login("me", "hunter2"))
    done = subprocess.run(
        [*fresh.command(), "--debug", "pull", f"{server.host}/x"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "hunter2" not in done.stderr + done.stdout
    assert base64.b64encode(b"me:hunter2").decode() not in done.stderr + done.stdout


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
