"""Who we are, as a registry wants to hear it: Basic (RFC 7617), or Bearer with a token that a token server gives
(distribution's spec/auth/token.md and oauth.md).

    registry: 401, WWW-Authenticate: Bearer realm="https://auth.example/token",service="…",scope="repository:x:pull"
    -> GET realm?service=…&scope=…  (Basic when we have a login)     {"token": …, "expires_in": seconds}
    -> the request again, Authorization: Bearer TOKEN
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from runtime.errors import RegistryError
from runtime.registry.config import Endpoint
from runtime.registry.credentials import Login
from runtime.registry.failures import Answered, printable
from runtime.registry.retries import retry_after
from runtime.registry.transport import AGENT, Body, Transport, web_address

_DOCUMENT = 1 << 20
_LIFE = 60.0  # seconds of a token that does not say (token.md, "expires_in")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]+)\s*(?:,|$)')
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$|(?=,))")


class Challenge(NamedTuple):
    """`scheme` and the parameters' names are in lower case."""

    scheme: str
    parameters: dict[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of WWW-Authenticate headers, each of which may hold several (RFC 9110, 11.6.1)."""
    found: list[Challenge] = []
    for header in headers:
        at = 0
        while at < len(header):
            parameter = _PARAMETER.match(header, at) if found else None
            scheme = None if parameter else _SCHEME.match(header, at)
            if parameter:
                value = parameter[2]
                if value.startswith('"'):
                    value = re.sub(r"\\(.)", r"\1", value[1:-1])
                found[-1].parameters[parameter[1].lower()] = value
                at = parameter.end()
            elif scheme and scheme.end() > at:
                found.append(Challenge(scheme[1].lower(), {}))
                at = scheme.end()
            else:
                break  # what follows cannot be read: what came before may do
    return found


class Authorizer:
    """The Authorization header for one endpoint and what is wanted there (`scopes`, as "repository:x:pull,push").

    Thread-safe: however many requests are refused at once, one new token is got.
    """

    def __init__(self, transport: Transport, endpoint: Endpoint, login: Login | None, scopes: Sequence[str]) -> None:
        self._transport, self._endpoint, self._login, self._scopes = transport, endpoint, login, tuple(scopes)
        self._lock = threading.Lock()
        self._header = ""  # guarded by _lock
        self._expires = float("inf")  # monotonic; guarded by _lock
        self._challenge: Challenge | None = None  # what was last answered; guarded by _lock

    @property
    def known(self) -> bool:
        """Whether there is a login to show."""
        return self._login is not None

    def header(self) -> str:
        """To be sent now; "" for none."""
        with self._lock:
            if self._challenge is not None and time.monotonic() >= self._expires:
                self._take_locked(self._challenge)
            return self._header

    def renew(self, headers: Sequence[str], used: str) -> bool:
        """After a 401 with these WWW-Authenticate headers to a request that sent `used`: whether there is another
        header to try. RegistryError when the token server fails or refuses."""
        with self._lock:
            if self._header != used:
                return True  # another thread has been here meanwhile
            offered = {challenge.scheme: challenge for challenge in challenges(headers)}
            if "bearer" in offered:
                self._take_locked(offered["bearer"])
                return self._header != used
            if "basic" in offered and self._login is not None and not self._login.refresh:
                self._header = basic(self._login)
                return self._header != used
            return False

    def _take_locked(self, challenge: Challenge) -> None:
        token, life = self._token(challenge)
        self._challenge = challenge
        self._header = f"Bearer {token}"
        self._expires = time.monotonic() + life * 0.9

    def _token(self, challenge: Challenge) -> tuple[str, float]:
        """A token and its life in seconds."""
        name, realm = self._endpoint.name, challenge.parameters.get("realm", "")
        if not web_address(realm):
            raise RegistryError(f"{name} names {printable(realm)!r} as its token server, which is no web address")
        parts = urlsplit(realm)
        if parts.scheme == "http" and self._endpoint.server.scheme == "https":
            raise RegistryError(f"{name} wants the password sent to {printable(realm)} in the clear: refused")
        # The registry's own wish is added, for it may know better (an action that we did not foresee).
        wishes = challenge.parameters.get("scope", "").split()
        scopes = [*self._scopes, *(wish for wish in wishes if not any(_covers(scope, wish) for scope in self._scopes))]
        fields = [("service", challenge.parameters[key]) for key in ("service",) if key in challenge.parameters]
        headers = {"Accept": "application/json"}
        login = self._login
        if login and login.refresh:
            fields += [("grant_type", "refresh_token"), ("client_id", AGENT), ("refresh_token", login.refresh)]
            fields += [("scope", " ".join(scopes))]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._transport.request("POST", realm, headers, Body.of(urlencode(fields).encode()))
        else:
            fields += [("scope", scope) for scope in scopes]
            if login:
                fields += [("account", login.user)]
                headers["Authorization"] = basic(login)
            query = urlencode([*parse_qsl(parts.query), *fields])
            answer = self._transport.request("GET", parts._replace(query=query, fragment="").geturl(), headers)
        with answer:
            data = answer.read_all(_DOCUMENT, "a token")
            if answer.status in (401, 403):
                raise Answered(_refused(name, login), status=answer.status)
            if answer.status != 200:
                raise Answered(
                    f"the token server of {name} ({parts.netloc}) answers {answer.status} {_reason(data)}".rstrip(),
                    status=answer.status, retry_after=retry_after(answer.headers.get("Retry-After")),
                )  # fmt: skip
        return _read(data, f"the token server of {name} ({parts.netloc})")


def _covers(scope: str, other: str) -> bool:
    """Whether TYPE:NAME:ACTION,… allows all that another one does."""
    resource, _, actions = scope.rpartition(":")
    wished, _, wishes = other.rpartition(":")
    return resource == wished and set(wishes.split(",")) <= set(actions.split(","))


def basic(login: Login) -> str:
    pair = f"{login.user}:{login.password}".encode("utf-8", "surrogateescape")
    return "Basic " + base64.b64encode(pair).decode()


def _refused(name: str, login: Login | None) -> str:
    if login:
        return f"{name}: incorrect username or password (runtime login {name})"
    return f"{name} gives no token without a login (runtime login {name})"


def _read(data: bytes, who: str) -> tuple[str, float]:
    document: Any = None
    try:
        document = json.loads(data)
        token = document.get("token") or document.get("access_token")
        life = float(document.get("expires_in") or _LIFE)
    except (ValueError, RecursionError, AttributeError, TypeError, OverflowError):
        token, life = None, 0.0
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise RegistryError(f"{who} answers with no token")
    return token, max(life, _LIFE) if life == life else _LIFE  # token.md: never less than 60 s


def _reason(data: bytes) -> str:
    """What a refusal says, if it says it as JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    return printable(str(document.get("details") or document.get("message") or document.get("error") or ""))
