"""Certificates and signatures by openssl(1), and a token server that docker-registry believes."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


def openssl(*words: object, data: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *map(str, words)], input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class Authority:
    """A certificate authority: `ca` is its certificate, `certificate` and `key` are one that it signed for loopback."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.ca, self.ca_key = home / "ca.pem", home / "ca-key.pem"
        self.certificate, self.key, request = home / "cert.pem", home / "key.pem", home / "request.pem"
        new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl(*new, "-x509", "-days", 2, "-subj", "/CN=Test Authority", "-keyout", self.ca_key, "-out", self.ca)
        openssl(*new, "-subj", "/CN=localhost", "-keyout", self.key, "-out", request)
        names = home / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.ca_key, "-days", 2, "-extfile", names,
            "-out", self.certificate,
        )  # fmt: skip

    @property
    def context(self) -> ssl.SSLContext:
        """For a server in this process."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    @property
    def tls(self) -> str:
        """For a docker-registry's `http:`."""
        return f"  tls:\n    certificate: {self.certificate}\n    key: {self.key}\n"


class TokenServer(ThreadingHTTPServer):
    """Gives user "me" with password "secret" what he asks for, and anybody a pull of repositories below public/.

    `asked` are the queries. distribution's spec/auth/jwt.md has the token's form.
    """

    daemon_threads = False

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Token)
        home.mkdir()
        self.key, self.certificate = home / "key.pem", home / "cert.pem"
        openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, "-subj", "/CN=tokens", "-keyout", self.key,
            "-out", self.certificate,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.server_address[1]}/token"
        self.asked: list[dict[str, list[str]]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def config(self) -> str:
        """For a docker-registry's configuration."""
        return (
            f"auth:\n  token:\n    realm: {self.url}\n    service: tests\n    issuer: tests\n"
            f"    rootcertbundle: {self.certificate}\n"
        )

    def token(self, access: list[dict[str, Any]]) -> str:
        der = openssl("x509", "-in", self.certificate, "-outform", "der")
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {
            "iss": "tests", "sub": "me", "aud": "tests", "exp": now + 300, "nbf": now - 10, "iat": now,
            "jti": uuid.uuid4().hex, "access": access,
        }  # fmt: skip
        signed = b".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        return (signed + b"." + _encoded(openssl("dgst", "-sha256", "-sign", self.key, data=signed))).decode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends takes its connections with it."""

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Token(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: TokenServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.server.asked.append(query)
        known = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:secret").decode()
        if "Authorization" in self.headers and not known:
            return self.answer(401, {"details": "incorrect username or password"})
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":")
            allowed = actions.split(",") if known else ["pull"] if name.startswith("public/") else []
            access.append({"type": kind, "name": name, "actions": allowed})
        return self.answer(200, {"token": self.server.token(access), "expires_in": 300})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """`asked` has it."""


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
