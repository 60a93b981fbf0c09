"""registries.toml: what an administrator says of registries.

    [registry."docker.io"]
    mirrors = ["mirror.example", "http://10.0.0.7:5000"]    # tried in this order, then the registry itself

    [registry."registry.example:5000"]
    ca = "/etc/ssl/our-ca.pem"    # trusted for it besides the system's authorities
    insecure = true               # plain HTTP; without it only loopback hosts are spoken to in the clear
    timeout = 60                  # seconds without an answer, or with next to no bytes, until it counts as stalled

It lies in $FUSE_AUFS_CONFIG, else in /etc/fuse-aufs. A mirror has its own table for `ca`, `insecure` and `timeout`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

from runtime.errors import InvalidValue, RegistryError

HUB = "docker.io"
_HUB_ENDPOINT = "registry-1.docker.io"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?"  # RFC 1035, 2.3.4
_HOST = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_LOOPBACK = re.compile(r"localhost|127\.[0-9]+\.[0-9]+\.[0-9]+|::1")
_KEYS = ("mirrors", "insecure", "ca", "timeout")
TIMEOUT = 30.0


class Host(NamedTuple):
    """One server: `scheme` "https" or "http", `host` without brackets, `ca` a path or "", `timeout` seconds."""

    scheme: str
    host: str
    port: int
    ca: str
    timeout: float

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _port(self.scheme) else f"{host}:{self.port}"


class Endpoint(NamedTuple):
    """Where a registry is asked. `name` is the one that credentials are kept under: a mirror's is its own."""

    name: str
    server: Host
    mirror: bool


class Registries:
    """The file in the directory that `environ` names; RegistryError names the file, the line and what is wrong."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = os.path.join(environ.get("FUSE_AUFS_CONFIG") or "/etc/fuse-aufs", "registries.toml")
        self._tables: dict[str, dict[str, Any]] = {}
        try:
            with open(self.path, encoding="utf-8") as file:
                text = file.read()
            document = tomllib.loads(text)
        except FileNotFoundError:
            return
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RegistryError(f"{self.path}: {error}") from None
        self._check(text, document)
        self._tables = {normal(name): table for name, table in document.get("registry", {}).items()}

    def endpoints(self, registry: str) -> list[Endpoint]:
        """Mirrors first, then the registry itself."""
        mirrors = [str(mirror) for mirror in self._tables.get(registry, {}).get("mirrors", [])]
        return [*(self._mirror(text) for text in mirrors), Endpoint(registry, self.server(registry), mirror=False)]

    def server(self, registry: str, scheme: str = "") -> Host:
        """The server that `registry` (HOST[:PORT], or Docker Hub's name) is; InvalidValue for what is not a host."""
        found = _HOST.fullmatch(_HUB_ENDPOINT if registry == HUB else registry)
        if not found or int(found["port"] or 0) > 65535:
            raise InvalidValue(f"{registry!r} is no registry: write HOST or HOST:PORT")
        host = found["host"].strip("[]")
        table = self._tables.get(registry, {})
        if not scheme:
            insecure = table.get("insecure", is_loopback(host) and "ca" not in table)
            scheme = "http" if insecure else "https"
        port = int(found["port"] or _port(scheme))
        return Host(scheme, host, port, table.get("ca", ""), float(table.get("timeout", TIMEOUT)))

    def _mirror(self, text: str) -> Endpoint:
        scheme, _, rest = text.rpartition("://")
        name = rest.rstrip("/")
        return Endpoint(name, self.server(name, scheme), mirror=True)

    def _check(self, text: str, document: dict[str, Any]) -> None:
        for key in document:
            if key != "registry":
                raise self._wrong(text, "", key, f"unknown key {key!r}; there are tables [registry.\"HOST:PORT\"]")
        tables = document.get("registry", {})
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            raise self._wrong(text, "", "registry", "write tables [registry.\"HOST:PORT\"]")
        for name, table in tables.items():
            try:
                self.server(normal(name))
            except InvalidValue as error:
                raise self._wrong(text, name, "", str(error)) from None
            for key, value in table.items():
                if fault := self._fault(key, value):
                    raise self._wrong(text, name, key, fault)

    def _fault(self, key: str, value: Any) -> str:
        """What is wrong with one line, or ""."""
        if key not in _KEYS:
            return f"unknown key {key!r}; there are {', '.join(_KEYS)}"
        if key == "insecure" and not isinstance(value, bool):
            return "insecure is true or false"
        if key == "ca" and not (isinstance(value, str) and os.path.isabs(value)):
            return "ca is the absolute path of a file of certificates"
        if key == "timeout" and not (type(value) in (int, float) and 0 < value <= 3600):
            return "timeout is a number of seconds up to 3600"
        if key == "mirrors":
            if not isinstance(value, list) or not all(isinstance(mirror, str) for mirror in value):
                return 'mirrors is a list, as in ["mirror.example:5000"]'
            for mirror in value:
                if not re.fullmatch(rf"(https?://)?{_HOST.pattern}/?", mirror):
                    return f"{mirror!r} is no mirror: write HOST[:PORT], with https:// or http:// before it or not"
        return ""

    def _wrong(self, text: str, table: str, key: str, why: str) -> RegistryError:
        """tomllib keeps no positions: the line is that of the key after the table's header."""
        number, inside = 1, not table
        for current, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("["):
                inside = not table or table in line
                number = current if inside and table else number
            if inside and key and re.match(rf"\s*[\[\"']*{re.escape(key)}\b", line):
                number = current
                break
        return RegistryError(f"{self.path}, line {number}: {why}")


def normal(registry: str) -> str:
    """Docker's ways to write a registry as one: without scheme and path, Docker Hub's names as docker.io."""
    name = registry.partition("://")[2] or registry
    name = name.partition("/")[0]
    return HUB if name in ("", HUB, "index.docker.io", _HUB_ENDPOINT) else name


def is_loopback(host: str) -> bool:
    return bool(_LOOPBACK.fullmatch(host))


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
