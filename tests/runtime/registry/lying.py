"""A registry in this process that tells the truth, to be overridden a lie at a time, and an image for it to have."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import ssl
import tarfile
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from runtime.images import document
from runtime.images.platforms import host

CHUNK = 64 << 10


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Made(NamedTuple):
    """An image as documents: `blobs` by digest, the layers' digests from the bottom up."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[str, ...]
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def made(sizes: Sequence[int] = (1000,), **changes: Any) -> Made:
    """An image of one file of these many bytes a layer, of noise that is the same each time. `changes` replace keys
    of the manifest."""
    layers = []
    for number, size in enumerate(sizes):
        with io.BytesIO() as file, tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo(f"file{number}")
            member.size = size
            archive.addfile(member, io.BytesIO(random.Random(number).randbytes(size)))
            archive.close()
            layers.append(file.getvalue())
    platform = host()
    config = json.dumps({
        "architecture": platform.architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
    }).encode()  # fmt: skip
    content = {
        "schemaVersion": 2, "mediaType": document.MANIFEST,
        "config": {"mediaType": document.CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": document.LAYER, "digest": digest_of(each), "size": len(each)} for each in layers],
        **changes,
    }  # fmt: skip
    return Made(
        json.dumps(content).encode(), str(content["mediaType"]), config, tuple(digest_of(layer) for layer in layers),
        {digest_of(blob): blob for blob in (config, *layers)},
    )  # fmt: skip


class Server(ThreadingHTTPServer):
    """A registry on loopback that has `image` as every tag. `over` is set when it is closed; `sent` counts the bytes
    of each blob that were written to anybody, `asked` are (method, path, headers)."""

    daemon_threads = False  # so that closing waits for them

    def __init__(
        self, handler: type[Honest], image: Made, tls: ssl.SSLContext | None = None, **more: Any
    ) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.image = image
        self.more = more
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.sent: dict[str, int] = {}
        self.uploads: dict[str, bytearray] = {}
        self.pushed: dict[str, bytes] = {}
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def paths(self, method: str = "GET") -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client broke off, as it does with liars."""


class Honest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    timeout = 60

    def do_GET(self) -> None:
        self.note()
        path = self.path.partition("?")[0]
        if path == "/v2/":
            return self.answer(200, b"{}")
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            return self.manifest(found[2])
        if found := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[0-9a-f]+)", path):
            return self.blob(found[2])
        if "/blobs/uploads/" in path:
            return self.upload_status()
        return self.error(404, "NAME_UNKNOWN", "no such thing")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.note()
        self.read()
        with self.server.lock:
            name = f"u{len(self.server.uploads)}"
            self.server.uploads[name] = bytearray()
        self.answer(202, b"", Location=f"{self.path.partition('?')[0]}{name}?state=x")

    def do_PATCH(self) -> None:
        self.note()
        held = self.upload()
        held += self.read()
        self.answer(202, b"", Location=self.path, Range=f"0-{len(held) - 1}")

    def do_PUT(self) -> None:
        self.note()
        data = self.read()
        if "/manifests/" in self.path:
            return self.put_manifest(data)
        digest = self.path.rpartition("digest=")[2].replace("%3A", ":")
        whole = bytes(self.upload()) + data
        if digest_of(whole) != digest:
            return self.error(400, "DIGEST_INVALID", "digest is wrong")
        self.server.pushed[digest] = whole
        return self.answer(201, b"")

    def do_DELETE(self) -> None:
        self.note()
        self.answer(204, b"")

    # What lies override.

    def manifest(self, reference: str) -> None:
        image = self.server.image
        if ":" in reference and reference != image.digest:
            return self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        return self.answer(200, image.manifest, image.media_type, Docker_Content_Digest=image.digest)

    def blob(self, digest: str) -> None:
        data = {**self.server.image.blobs, **self.server.pushed}.get(digest)
        if data is None:
            return self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        start, status = 0, 200
        headers = {}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.begin(status, **{"Content-Length": str(len(data) - start), **headers})
        return self.pour(digest, data[start:])

    def upload_status(self) -> None:
        self.begin(204, Location=self.path, Range=f"0-{max(len(self.upload()) - 1, 0)}")

    def put_manifest(self, data: bytes) -> None:
        self.server.pushed["manifest"] = data
        self.answer(201, b"", Docker_Content_Digest=digest_of(data))

    # Means.

    def upload(self) -> bytearray:
        return self.server.uploads[self.path.partition("?")[0].rpartition("/")[2]]

    def note(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def begin(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def answer(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        self.begin(status, Content_Type=content_type, Content_Length=str(len(body)), **headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, message: str, **headers: str) -> None:
        self.answer(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode(), **headers)

    def pour(self, digest: str, data: bytes) -> None:
        """Write a blob's bytes, counted."""
        if self.command == "HEAD":
            return
        for at in range(0, len(data), CHUNK):
            self.wfile.write(data[at : at + CHUNK])
            self.server.sent[digest] = self.server.sent.get(digest, 0) + len(data[at : at + CHUNK])

    def hang_up(self) -> None:
        """Close the connection after what has been written."""
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at `asked`."""
