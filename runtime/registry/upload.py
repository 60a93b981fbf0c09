"""A blob to a repository (distribution-spec, "Pushing blobs"): POST opens an upload at a Location; a small blob is PUT
there in one piece (end-4a, end-6), a large one sent in chunks by PATCH (end-5), each answer naming the next Location.
A chunk that breaks off is gone on with from where the registry says that it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import urlencode, urlsplit

from runtime.errors import RegistryError
from runtime.images.document import Descriptor
from runtime.registry.client import Client
from runtime.registry.failures import Answered, Unreachable
from runtime.registry.response import Response
from runtime.registry.retries import retried
from runtime.registry.transport import EMPTY, Body, web_address

CHUNK = 16 << 20  # bytes of a blob that are sent at once, and lost at most when the line breaks
_BLOCK = 256 << 10
_TYPE = "application/octet-stream"
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


def mount(client: Client, digest: str, source: str) -> bool:
    """Whether the registry took the blob over from its repository `source` (end-11)."""

    def ask() -> bool:
        query = urlencode({"mount": digest, "from": source})
        with client.request("POST", client.url(f"blobs/uploads/?{query}"), body=EMPTY) as response:
            if response.status == 202:
                _cancel(client, response)  # it knows no such blob there, and has opened an upload instead
            return response.status == 201

    return retried(ask, client.patience)


def upload(
    client: Client, blob: Descriptor, opened: Callable[[], BinaryIO], sent: Callable[[int], object],
    *, chunk: int = CHUNK,
) -> None:  # fmt: skip
    """Send the blob that `opened()` reads. `sent(position)` is called now and then, and may raise to stop."""
    sending = _Upload(client, blob, opened, sent, chunk)
    try:
        retried(sending.go_on, client.patience, lambda: sending.position)
    except BaseException:
        sending.cancel()
        raise


class _Upload:
    """One blob on its way, across broken lines. `position` counts the bytes that the registry has said it has."""

    def __init__(
        self, client: Client, blob: Descriptor, opened: Callable[[], BinaryIO], sent: Callable[[int], object],
        chunk: int,
    ) -> None:  # fmt: skip
        self._client, self._blob, self._opened, self._sent, self._chunk = client, blob, opened, sent, chunk
        self._location = ""
        self.position = 0

    def go_on(self) -> None:
        if self._location:
            self._find_out()
        if not self._location:
            self._open()
        with self._opened() as file:
            while self._blob.size - self.position > self._chunk:
                self._patch(file)
            self._put(file)

    def cancel(self) -> None:
        """Tell the registry to forget it, if it still listens."""
        with contextlib.suppress(RegistryError):
            if self._location:
                self._client.request("DELETE", self._location).close()

    def _open(self) -> None:
        with self._client.request("POST", self._client.url("blobs/uploads/"), body=EMPTY) as response:
            if response.status != 202:
                raise self._client.refusal(response, self._what)
            self.position = 0
            self._follow(response, self._client.url("blobs/uploads/"))
            least = response.headers.get("OCI-Chunk-Min-Length") or ""
            if least.isdecimal():
                self._chunk = max(self._chunk, int(least[:12]))

    def _find_out(self) -> None:
        """After a break: how far it came (end-13). An upload that is gone, or that says nothing, begins anew."""
        with self._client.request("GET", self._location) as response:
            self.position = _held(response) if response.status == 204 else -1
            if 0 <= self.position <= self._blob.size:
                self._follow(response, self._location)
            else:
                self._location, self.position = "", 0

    def _patch(self, file: BinaryIO) -> None:
        size = min(self._chunk, self._blob.size - self.position)
        headers = {"Content-Type": _TYPE, "Content-Range": f"{self.position}-{self.position + size - 1}"}
        with self._client.request("PATCH", self._location, headers, self._body(file, size)) as response:
            if response.status not in (201, 202, 204):
                raise self._lost(response)
            self._follow(response, self._location)
        self.position += size

    def _put(self, file: BinaryIO) -> None:
        size = self._blob.size - self.position
        headers = {"Content-Type": _TYPE}
        if self.position:
            headers["Content-Range"] = f"{self.position}-{self._blob.size - 1}"
        parts = urlsplit(self._location)
        query = "&".join(filter(None, (parts.query, urlencode({"digest": self._blob.digest}))))
        url = parts._replace(query=query).geturl()
        with self._client.request("PUT", url, headers, self._body(file, size)) as response:
            if response.status not in (201, 204):
                raise self._lost(response)
        self._location, self.position = "", self._blob.size
        self._sent(self.position)

    def _body(self, file: BinaryIO, size: int) -> Body:
        start = self.position

        def blocks() -> Iterator[bytes]:
            file.seek(start)
            done = 0
            while done < size:
                block = file.read(min(_BLOCK, size - done))
                if not block:
                    raise RegistryError(f"{self._what} is damaged in the store: it is too short")
                yield block
                done += len(block)
                self._sent(start + done)

        return Body(blocks, size)

    def _follow(self, response: Response, url: str) -> None:
        location = response.headers.get("Location")
        if not location:
            raise RegistryError(f"{self._client.endpoint.name} opens an upload and does not say where")
        onward = web_address(location, url)
        server = self._client.endpoint.server
        if urlsplit(onward).scheme not in ("https", server.scheme):
            raise RegistryError(f"{server.netloc} wants an upload where none can go, or in the clear: refused")
        self._location = onward

    def _lost(self, response: Response) -> Exception:
        """An upload that the registry has forgotten, or counts otherwise, is one that broke: another try finds out."""
        refusal = self._client.refusal(response, self._what)
        if response.status in (404, 416):
            if response.status == 404:
                self._location = ""
            return Unreachable(str(refusal), transient=True)
        return refusal

    @property
    def _what(self) -> str:
        return f"blob {self._blob.digest[:19]} of {self._client.name}"


def _held(response: Response) -> int:
    """How many bytes the registry has of an upload, by its Range header; -1 when it does not say. A Range of 0-0 is
    said of none and of one byte: none is the safe reading, and where it is wrong the chunk is refused (416)."""
    found = _RANGE.fullmatch((response.headers.get("Range") or "").strip())
    if not found:
        return -1
    last = int(found[1])
    return last + 1 if last else 0


def _cancel(client: Client, response: Response) -> None:
    location = response.headers.get("Location")
    if location and (url := web_address(location, client.url("blobs/uploads/"))):
        with contextlib.suppress(RegistryError, Answered):
            client.request("DELETE", url).close()
