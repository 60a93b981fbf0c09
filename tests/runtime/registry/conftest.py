"""Registries on loopback: Debian's docker-registry, started here with its storage below the temporary directory."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers.catalog import open_driver
from runtime.cli.progress import Lines
from runtime.errors import ImageError, RegistryError
from runtime.images.platforms import Platform
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.registry.access import Access
from runtime.registry.pull import Pulled, pull
from runtime.registry.push import push
from runtime.registry.retries import Patience
from tests.runtime.conftest import Runtime, wait_until
from tests.runtime.registry.lying import Honest, Made, Server, made

_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def free_port() -> int:
    """The run has a network namespace of its own, so nobody else takes it meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Registry:
    """A docker-registry of its own. `host` is what images are named with, "localhost:PORT"."""

    def __init__(self, home: Path, extra: str = "", http: str = "") -> None:
        self.home, self.port = home, free_port()
        self.host = f"localhost:{self.port}"
        self.log = home / "log"
        self.storage = home / "storage"
        home.mkdir(parents=True, exist_ok=True)
        config = home / "config.yml"
        config.write_text(
            "version: 0.1\nlog:\n  level: info\n"
            f"storage:\n  filesystem:\n    rootdirectory: {self.storage}\n  delete:\n    enabled: true\n"
            f"http:\n  addr: 127.0.0.1:{self.port}\n{http}{extra}"
        )
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(lambda: answers(self.port) or self.process.poll() is not None, "docker-registry answers")
        assert self.process.poll() is None, self.log.read_text()

    def blob(self, digest: str) -> Path:
        hexed = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hexed[:2] / hexed / "data"

    def requests(self, method: str) -> list[str]:
        """The paths that were asked for with this method, from its access log."""
        return re.findall(rf'"{method} (\S+) HTTP/', self.log.read_text())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def docker_registry() -> None:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")


@pytest.fixture
def new_registry(docker_registry: None, tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """`new_registry(extra="auth: …", http="  tls: …")`: another one, with these lines in its configuration."""
    started: list[Registry] = []

    def start(**lines: str) -> Registry:
        started.append(Registry(tmp_path / f"registry{len(started)}", **lines))
        return started[-1]

    yield start
    for registry in started:
        registry.close()


@pytest.fixture(scope="session")
def registry(docker_registry: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One for the session, open to everybody; repositories in it are each test's own."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.close()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of registries.toml and auth.json, empty; nothing of the user's is seen."""
    directory = tmp_path / "config"
    directory.mkdir()
    monkeypatch.setenv("FUSE_AUFS_CONFIG", str(directory))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    for name in _PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return directory


@pytest.fixture
def new_runtime(tmp_path: Path, config: Path, deadline: None) -> Iterator[Callable[[], Runtime]]:
    """`new_runtime()`: an installation without any image, on vfs: what a driver does is tested elsewhere."""
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    made: list[Runtime] = []

    def make() -> Runtime:
        place = tmp_path / f"runtime{len(made)}"
        made.append(Runtime(place / "root", place / "state", "vfs"))
        return made[-1]

    yield make
    for runtime in made:
        if (runtime.state / "containers").is_dir():
            assert runtime.ids() == []


@pytest.fixture
def fresh(new_runtime: Callable[[], Runtime]) -> Runtime:
    return new_runtime()


@pytest.fixture
def lying(deadline: None) -> Iterator[Callable[..., Server]]:
    """`lying(Handler, made(…))`: a registry whose answers are the handler's."""
    started: list[Server] = []

    def start(handler: type[Honest], image: Made | None = None, **more: Any) -> Server:
        started.append(Server(handler, image or made(), **more))
        return started[-1]

    yield start
    for server in started:
        server.close()


class Puller:
    """`pull` and `push` in this process, into a store and a vfs driver of its own; pauses are noted and not made."""

    def __init__(self, place: Path) -> None:
        self.store = ImageStore(str(place / "images"))
        self.incoming = place / "images/incoming"
        self.driver = open_driver("vfs", str(place / "driver"))
        self.pauses: list[float] = []
        self.said = io.StringIO()

    def access(self) -> Access:
        return Access(os.environ, Patience(sleep=self.pauses.append))

    def pull(self, name: str, platform: Platform | None = None) -> Pulled:
        return pull(self.store, self.access(), parse(name), self.driver, Lines(self.said), platform=platform)

    def push(self, name: str) -> str:
        return push(self.store, self.access(), parse(name), Lines(self.said))

    def tags(self, name: str) -> list[str]:
        return self.access().pulling(parse(name), lambda client: client.tags(), self.said.write)

    def refused(self, name: str) -> str:
        """The sentence of a pull that fails; nothing but bytes to go on from is left."""
        before = [image.manifest for image in self.store.list()]
        with pytest.raises((RegistryError, ImageError)) as raised:
            self.pull(name)
        assert [image.manifest for image in self.store.list()] == before
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def left(self) -> dict[str, int]:
        """Bytes of each blob that is there in part or whole, and belongs to no image yet."""
        return {path.name: path.stat().st_size for path in self.incoming.iterdir()}


@pytest.fixture
def puller(tmp_path: Path, config: Path, deadline: None) -> Iterator[Puller]:
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    puller = Puller(tmp_path / "puller")
    yield puller
    puller.driver.close()
    puller.store.prune_incoming()
