"""HTTPS_PROXY, HTTP_PROXY and NO_PROXY, also in lower case, as curl and Go's net/http read them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from runtime.errors import RegistryError
from runtime.registry.config import Host


class Proxy(NamedTuple):
    """`headers` are (name, value) pairs for the proxy."""

    host: str
    port: int
    authorization: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}

    @property
    def netloc(self) -> str:
        return f"{self.host}:{self.port}"


class Proxies:
    """Read once, when a request first needs them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def of(self, server: Host) -> Proxy | None:
        """The proxy by which `server` is reached; RegistryError when its variable cannot be meant."""
        name = f"{server.scheme}_proxy"
        text = self._environ.get(name) or self._environ.get(name.upper()) or ""
        if not text or self._spared(server):
            return None
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port = None, 0
        else:
            if parts.scheme != "http":
                host = None
        if not host:
            raise RegistryError(f"{name.upper()} is {text!r}: write http://HOST:PORT")
        authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return Proxy(host, port, authorization)

    def _spared(self, server: Host) -> bool:
        """NO_PROXY: names with all below them, addresses and networks, each with a port or without; * for all."""
        for word in (self._environ.get("no_proxy") or self._environ.get("NO_PROXY") or "").split(","):
            pattern = word.strip().lower()
            if pattern == "*":
                return True
            name, colon, port = pattern.rpartition(":")
            if colon and port.isdecimal() and (":" not in name or name.startswith("[")):
                if int(port) != server.port:
                    continue
                pattern = name
            if pattern and (_is_below(server.host.lower(), pattern.strip("[]")) or _is_in(server.host, pattern)):
                return True
        return False


def _is_below(host: str, pattern: str) -> bool:
    name = pattern.removeprefix("*").removeprefix(".")
    return host == name or host.endswith(f".{name}")


def _is_in(host: str, network: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
