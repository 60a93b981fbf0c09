"""HTTP/1.1 to registries, token servers and the stores that they redirect to.

Connections are kept and taken by whichever thread asks next. A certificate is verified against the system's authorities
and what registries.toml adds for that host. Redirects are followed where that repeats nothing; the Authorization header
does not follow to another host (RFC 9110, 15.4), and nothing follows from https to http. A proxy is taken from
HTTPS_PROXY, HTTP_PROXY and NO_PROXY, for all but loopback hosts.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from runtime.errors import InvalidValue, RegistryError
from runtime.registry.config import Host, Registries, is_loopback
from runtime.registry.failures import Unreachable, printable
from runtime.registry.proxies import Proxies, Proxy
from runtime.registry.response import Response

AGENT = "fuse-aufs"
_REDIRECTS = 5
_FOLLOWED = (301, 302, 303, 307, 308)


class Body(NamedTuple):
    """What is sent: `blocks` gives its bytes anew with each call, `size` is their number."""

    blocks: Callable[[], Iterable[bytes]]
    size: int

    @classmethod
    def of(cls, data: bytes) -> Body:
        return cls(lambda: [data], len(data))


EMPTY = Body.of(b"")


class Transport:
    """Thread-safe. `close()` when done; `abort()` from any thread makes every other one's request fail at once."""

    def __init__(self, registries: Registries, environ: Mapping[str, str]) -> None:
        self.registries = registries
        self._proxies = Proxies(environ)
        self._lock = threading.Lock()
        self._idle: dict[tuple[object, ...], list[http.client.HTTPConnection]] = {}  # guarded by _lock
        self._busy: set[http.client.HTTPConnection] = set()  # guarded by _lock
        self.aborted = threading.Event()  # set under _lock
        self._contexts: dict[str, ssl.SSLContext] = {}  # by `ca`; guarded by _lock

    def close(self) -> None:
        with self._lock:
            connections = [*self._busy, *(each for idle in self._idle.values() for each in idle)]
            self._idle.clear()
            self._busy.clear()
        for connection in connections:
            connection.close()

    def abort(self) -> None:
        with self._lock:
            self.aborted.set()
            for connection in self._busy:
                if connection.sock is not None:
                    _shut_down(connection.sock)

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None, *, server: Host | None = None
    ) -> Response:
        """One answer, redirects followed. `server` is what registries.toml says of the URL's host, when known.

        Raises Unreachable, RegistryError. The caller closes the response.
        """
        sent = dict(headers)
        for _ in range(_REDIRECTS + 1):
            parts = urlsplit(url)
            server = server or self._server(url)
            target = parts.path or "/"
            response = self._exchange(server, method, f"{target}?{parts.query}" if parts.query else target, sent, body)
            response.url = url
            location = response.headers.get("Location")
            # 201 and 202 have one as well. A body is not sent a second time elsewhere.
            if response.status not in _FOLLOWED or not location or (body and body.size):
                return response
            response.close()
            onward = web_address(location, url)
            if not onward:
                raise RegistryError(f"{server.netloc} redirects to {printable(location)!r}, which is no web address")
            if server.scheme == "https" and urlsplit(onward).scheme == "http":
                raise RegistryError(f"{server.netloc} redirects to {printable(onward)}, in the clear: refused")
            if not same_origin(url, onward):
                sent.pop("Authorization", None)
            url, server = onward, None
        raise RegistryError(f"{urlsplit(url).netloc} redirects in a circle, or more than {_REDIRECTS} times")

    def _server(self, url: str) -> Host:
        try:
            parts = urlsplit(url)
            host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
            return self.registries.server(host if parts.port is None else f"{host}:{parts.port}", parts.scheme)
        except (ValueError, InvalidValue):
            raise RegistryError(f"{printable(url)!r} is no web address") from None

    def _exchange(
        self, server: Host, method: str, target: str, headers: Mapping[str, str], body: Body | None
    ) -> Response:
        proxy = None if is_loopback(server.host) else self._proxies.of(server)
        if proxy and server.scheme == "http":
            target, headers = server.url + target, {**headers, **proxy.headers}
        while True:
            connection, reused = self._take(server, proxy)
            try:
                return self._ask(connection, server, proxy, method, target, headers, body)
            except (http.client.HTTPException, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
                self._drop(connection)
                if reused and method in ("GET", "HEAD") and not self.aborted.is_set():
                    continue  # it was closed while nobody used it, as servers do
                raise _broken(server, error) from error
            except OSError as error:
                self._drop(connection)
                raise _failure(server, error, self.registries.path) from error
            except BaseException:
                self._drop(connection)
                raise

    def _ask(
        self, connection: http.client.HTTPConnection, server: Host, proxy: Proxy | None, method: str, target: str,
        headers: Mapping[str, str], body: Body | None,
    ) -> Response:  # fmt: skip
        if connection.sock is None:
            _connect(connection, server, proxy, self.registries.path)
            with self._lock:
                if self.aborted.is_set():
                    raise ConnectionAbortedError
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(body.size))
        try:
            connection.endheaders()
            for block in body.blocks() if body else ():
                connection.send(block)
        except (BrokenPipeError, ConnectionResetError):
            # It need not hear us out to refuse: what it said before it closed may still be there to read.
            pass
        answer = _head(connection, server.timeout)
        return Response(answer, server, lambda whole: self._give_back(connection, server, proxy, reusable=whole))

    def _take(self, server: Host, proxy: Proxy | None) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self.aborted.is_set():
                raise Unreachable("stopped", transient=False)
            idle = self._idle.get((server, proxy))
            connection = idle.pop() if idle else None
            if connection is not None:
                self._busy.add(connection)
                return connection, True
            connection = self._connection(server, proxy)
            self._busy.add(connection)
            return connection, False

    def _connection(self, server: Host, proxy: Proxy | None) -> http.client.HTTPConnection:
        host, port = (proxy.host, proxy.port) if proxy else (server.host, server.port)
        if server.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=server.timeout)
        connection = http.client.HTTPSConnection(
            host, port, timeout=server.timeout, context=self._context_locked(server.ca)
        )
        if proxy:
            connection.set_tunnel(server.host, server.port, dict(proxy.headers))
        return connection

    def _context_locked(self, ca: str) -> ssl.SSLContext:
        if ca not in self._contexts:
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
            if ca:
                try:
                    context.load_verify_locations(ca)
                except (OSError, ssl.SSLError) as error:
                    why = error.strerror if isinstance(error, OSError) and error.strerror else error
                    raise RegistryError(f"{self.registries.path}: ca = {ca!r}: {why}") from None
            self._contexts[ca] = context
        return self._contexts[ca]

    def _give_back(
        self, connection: http.client.HTTPConnection, server: Host, proxy: Proxy | None, *, reusable: bool
    ) -> None:
        with self._lock:
            known = connection in self._busy
            self._busy.discard(connection)
            if known and reusable and not self.aborted.is_set():
                self._idle.setdefault((server, proxy), []).append(connection)
                return
        connection.close()

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()


def web_address(text: str, base: str = "") -> str:
    """The URL that a server means by `text`, relative to `base`; "" when that is neither http nor https."""
    try:
        found = urljoin(base, text)
        parts = urlsplit(found)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and found.isascii()
    except ValueError:  # a "[" that begins no IPv6 address
        return ""
    return found if fine else ""


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs are of one server: scheme, host and port (RFC 6454)."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname, port or {"https": 443, "http": 80}.get(parts.scheme)


def _shut_down(sock: socket.socket) -> None:
    """Not close(): another thread is in recv() on the descriptor, whose number could be given anew."""
    with contextlib.suppress(OSError):  # not connected any more
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _head(connection: http.client.HTTPConnection, seconds: float) -> http.client.HTTPResponse:
    """The answer up to its body. TimeoutError when that takes longer than `seconds` in all: the socket's time-out is
    each recv(2)'s, and 100 Continue may be said for ever."""
    late = threading.Event()
    sock: socket.socket = connection.sock

    def stop() -> None:
        late.set()
        _shut_down(sock)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        answer = connection.getresponse()
    except (http.client.HTTPException, OSError):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        timer.join()
    if late.is_set():  # a header that was cut off passes for a whole one
        answer.close()
        raise TimeoutError
    return answer


def _connect(connection: http.client.HTTPConnection, server: Host, proxy: Proxy | None, path: str) -> None:
    """Raises what a line that never was is told by; after it, failures are those of a line that broke."""
    failure: RegistryError
    try:
        connection.connect()
        return
    except (http.client.HTTPException, OSError) as error:
        if proxy and not isinstance(error, ssl.SSLError):
            message = f"{server.netloc} cannot be reached by the proxy {proxy.netloc}: {_text(error)}"
            failure = Unreachable(message, transient=False)
        else:
            failure = _failure(server, error, path)
    # Not from `error`: its traceback would keep http.client's answer of the proxy, which is closed with the last
    # reference only (3.11, HTTPConnection._tunnel).
    raise failure


def _failure(server: Host, error: Exception, path: str) -> RegistryError:
    """The sentence for what failed below HTTP."""
    table = f'[registry."{server.netloc}"] of {path}'
    if isinstance(error, ssl.SSLCertVerificationError):
        return RegistryError(
            f"the certificate of {server.netloc} cannot be verified ({error.verify_message}); to trust its authority "
            f"write ca = \"FILE\" under {table}"
        )
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason or error).lower().replace("_", " ")
        return RegistryError(
            f"{server.netloc} does not speak TLS as it should ({reason}); if it is meant to be spoken to in the clear, "
            f"write insecure = true under {table}"
        )
    if isinstance(error, socket.gaierror):
        return Unreachable(f"no such host: {server.host} ({error.strerror})", transient=False)
    if isinstance(error, ConnectionRefusedError):
        return Unreachable(f"{server.netloc}: connection refused: no registry is running there", transient=False)
    if isinstance(error, TimeoutError):
        return Unreachable(f"{server.netloc} does not answer within {server.timeout:g} seconds", transient=True)
    if isinstance(error, (ConnectionError, http.client.HTTPException)):
        return _broken(server, error)
    return Unreachable(f"{server.netloc}: {_text(error)}", transient=False)


def _broken(server: Host, error: Exception) -> RegistryError:
    if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.RemoteDisconnected):
        return RegistryError(f"{server.netloc} does not speak HTTP as a registry does ({_text(error)})")
    return Unreachable(f"{server.netloc} closed the connection without an answer", transient=True)


def _text(error: Exception) -> str:
    return printable(error.strerror if isinstance(error, OSError) and error.strerror else str(error) or repr(error))
