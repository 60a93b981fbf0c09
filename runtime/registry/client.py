"""One repository at one endpoint: the calls of the distribution API that pull and push need (distribution-spec spec.md,
"Endpoints": end-2 to end-11).

Nothing that comes is believed: documents are limited in size, a digest is checked against the bytes, a blob is cut off
at the size that its manifest names. What is refused is said in docker's words where docker has some.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from runtime.errors import RegistryError
from runtime.images import document
from runtime.images.blobs import digest_of
from runtime.images.document import Descriptor
from runtime.images.incoming import Incoming
from runtime.registry.auth import Authorizer
from runtime.registry.config import Endpoint
from runtime.registry.credentials import Login
from runtime.registry.failures import Answered, printable
from runtime.registry.response import Response
from runtime.registry.retries import Patience, retried, retry_after
from runtime.registry.transport import Body, Transport, same_origin, web_address

_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_ACCEPT = ", ".join((*document.MANIFESTS, *document.INDEXES))
_REASON = 64 << 10  # bytes of an error document that are looked at
_TAGS = 10_000


class Fetched(NamedTuple):
    """A manifest or an index as it came."""

    data: bytes
    media_type: str
    digest: str


class Client:
    """Thread-safe. `name` is the repository as a user writes it, for sentences; `action` "pull" or "push"; `sources`
    are repositories from which blobs may be mounted. Every method raises RegistryError."""

    def __init__(
        self, transport: Transport, endpoint: Endpoint, login: Login | None, repository: str, *,
        name: str, action: str, sources: Sequence[str] = (), patience: Patience | None = None,
    ) -> None:  # fmt: skip
        actions = "pull,push" if action == "push" else "pull"
        scopes = [f"repository:{repository}:{actions}", *(f"repository:{source}:pull" for source in sources)]
        self.endpoint, self.repository, self.name, self.action = endpoint, repository, name, action
        self.patience = patience or Patience()
        self._transport = transport
        self._authorizer = Authorizer(transport, endpoint, login, scopes)
        self._base = f"{endpoint.server.url}/v2/{quote(repository)}"

    def abort(self) -> None:
        """Make what other threads are asking here fail at once. Nothing can be asked any more then."""
        self._transport.abort()

    def url(self, path: str) -> str:
        return f"{self._base}/{path}"

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: Body | None = None
    ) -> Response:
        """One request with our Authorization, a second when that has to be got or renewed first. Not tried again."""
        ours = self._is_ours(url)
        for last in (False, True):
            used = self._authorizer.header() if ours else ""
            sent = {**(headers or {}), **({"Authorization": used} if used else {})}
            server = self.endpoint.server if ours else None
            response = self._transport.request(method, url, sent, body, server=server)
            wanted = response.headers.get_all("WWW-Authenticate") or []
            # Whom we were redirected to must not name a token server that gets our password (CVE-2020-15157).
            if response.status != 401 or last or not self._is_ours(response.url):
                return response
            try:
                if not self._authorizer.renew(wanted, used):
                    return response
                response.read(_REASON)  # a short refusal is read to its end, and the connection can be used again
            except Answered as error:
                response.close()
                raise self._denied(str(error)) if error.status in (401, 403) else error from None
            except BaseException:
                response.close()
                raise
            response.close()
        raise AssertionError("the second round returns")

    def _is_ours(self, url: str) -> bool:
        return same_origin(url, self.endpoint.server.url)

    def manifest(self, reference: str) -> Fetched:
        """A manifest or an index, by tag or by digest (end-3). It is what its digest says."""
        return retried(lambda: self._manifest(reference), self.patience)

    def _manifest(self, reference: str) -> Fetched:
        what = f"manifest for {self._at(reference)}"
        with self.request("GET", self.url(f"manifests/{quote(reference, safe=':')}"), {"Accept": _ACCEPT}) as response:
            if response.status != 200:
                raise self.refusal(response, what)
            data = response.read_all(document.MAX_DOCUMENT, f"the {what}")
        said = (response.headers.get("Content-Type") or "").partition(";")[0].strip()
        self._no_encoding(response, what)
        if said == "text/html":
            raise RegistryError(f"{self._who} answers with a web page where a manifest should be: is it a registry?")
        if said.startswith(_SCHEMA_1):
            raise RegistryError(
                f"the {what} is of docker's schema 1, which engines have given up; push the image again with a new tool"
            )
        digest = digest_of(data)
        claimed = reference if ":" in reference else response.headers.get("Docker-Content-Digest") or digest
        if claimed != digest:
            raise RegistryError(
                f"{self._who} lies, or was tampered with: what it sent as {printable(claimed, 80)} has digest {digest}"
            )
        try:
            return Fetched(data, document.media_type(data, said), digest)
        except ValueError as error:
            raise RegistryError(f"the {what} {error}") from None

    def blob(self, wanted: Descriptor, incoming: Incoming, arrived: Callable[[int], object]) -> None:
        """All of a blob into `incoming`, from where that is on (end-2, with Range). `arrived(position)` is called now
        and then, and may raise to stop. The caller finishes `incoming`."""

        def more() -> None:
            if incoming.position < wanted.size:
                self._blob(wanted, incoming, arrived)

        arrived(incoming.position)
        retried(more, self.patience, lambda: incoming.position)

    def _blob(self, wanted: Descriptor, incoming: Incoming, arrived: Callable[[int], object]) -> None:
        start = incoming.position
        headers = {"Range": f"bytes={start}-"} if start else {}
        what = f"{wanted.digest[:19]} of {self.name}"
        with self.request("GET", self.url(f"blobs/{wanted.digest}"), headers) as response:
            if response.status == 416 and start:
                incoming.restart()  # from the beginning then: without a Range it cannot say that again
                return self._blob(wanted, incoming, arrived)
            if response.status not in (200, 206):
                raise self.refusal(response, f"blob {what}")
            if response.status == 206 and not _begins_at(response.headers.get("Content-Range"), start):
                raise RegistryError(f"{self._who} sends another part of {what} than it was asked for")
            if response.status == 200 and start:
                incoming.restart()  # it does not know Range: all of it comes again
            left = wanted.size - incoming.position
            if response.length not in (None, left):
                encoding = response.headers.get("Content-Encoding")
                note = f" (its Content-Encoding is {printable(encoding, 40)})" if encoding else ""
                raise RegistryError(
                    f"{self._who} has {response.length} bytes of {what} where its manifest says {left}{note}"
                )
            while block := response.read():
                if len(block) > wanted.size - incoming.position:
                    raise RegistryError(f"{self._who} sends more than the {wanted.size} bytes of {what}: cut off")
                incoming.write(block)
                arrived(incoming.position)
        if incoming.position < wanted.size:
            raise RegistryError(
                f"{self._who} sends {incoming.position} bytes as {what} where its manifest says {wanted.size}"
            )

    def document(self, wanted: Descriptor) -> bytes:
        """A small blob, a configuration, whole and verified."""

        def get() -> bytes:
            what = f"blob {wanted.digest[:19]} of {self.name}"
            with self.request("GET", self.url(f"blobs/{wanted.digest}")) as response:
                if response.status != 200:
                    raise self.refusal(response, what)
                data = response.read_all(wanted.size, f"the {what}")
            if digest_of(data) != wanted.digest:
                raise RegistryError(f"{self._who} lies, or was tampered with: what it sent as {what} is something else")
            return data

        return retried(get, self.patience)

    def has_blob(self, digest: str) -> bool:
        """Whether the repository says that it has the blob (end-2, HEAD)."""

        def ask() -> bool:
            with self.request("HEAD", self.url(f"blobs/{digest}")) as response:
                if response.status not in (200, 404):
                    raise self.refusal(response, f"blob {digest[:19]} of {self.name}")
                return response.status == 200

        return retried(ask, self.patience)

    def put_manifest(self, tag: str, data: bytes, media_type: str) -> str:
        """Its digest (end-7). The same bytes twice are the same, so it may be tried again."""

        def put() -> str:
            headers = {"Content-Type": media_type}
            with self.request("PUT", self.url(f"manifests/{quote(tag)}"), headers, Body.of(data)) as response:
                if response.status not in (200, 201, 202):
                    raise self.refusal(response, f"manifest for {self._at(tag)}")
                digest = digest_of(data)
                claimed = response.headers.get("Docker-Content-Digest") or digest
            if claimed != digest:
                raise RegistryError(
                    f"{self._who} has stored something else: it says {printable(claimed, 80)} instead of {digest}"
                )
            return digest

        return retried(put, self.patience)

    def tags(self) -> list[str]:
        """All tags of the repository (end-8), page by page."""
        found: dict[str, None] = {}
        url: str | None = self.url("tags/list")
        while url is not None:
            page, url = retried(lambda at=url: self._tags(at), self.patience)  # type: ignore[misc]
            before = len(found)
            found.update(dict.fromkeys(page))
            if len(found) > _TAGS:
                raise RegistryError(f"{self.name} has more than {_TAGS} tags; pull those that you need by name")
            if len(found) == before:
                break  # a page that adds nothing: it may link to itself
        return list(found)

    def _tags(self, url: str) -> tuple[list[str], str | None]:
        what = f"list of tags of {self.name}"
        with self.request("GET", url) as response:
            if response.status != 200:
                raise self.refusal(response, what)
            data = response.read_all(document.MAX_DOCUMENT, f"the {what}")
        content = _json(data)
        tags = content.get("tags") or [] if isinstance(content, dict) else None
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise RegistryError(f"{self._who} sends something else as the {what}")
        target, _, relation = (response.headers.get("Link") or "").partition(">")
        onward = web_address(target.strip().removeprefix("<"), url) if 'rel="next"' in relation else ""
        return tags, onward if onward and same_origin(onward, url) else None

    @property
    def _who(self) -> str:
        return self.endpoint.server.netloc if self.endpoint.mirror else self.endpoint.name

    def _at(self, reference: str) -> str:
        return f"{self.name}{'@' if ':' in reference else ':'}{reference}"

    def _no_encoding(self, response: Response, what: str) -> None:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise RegistryError(
                f"{self._who} sends the {what} with Content-Encoding {printable(encoding, 40)}, though asked not to"
            )

    def _denied(self, why: str) -> Answered:
        login = "" if self._authorizer.known else f" (runtime login {self.endpoint.name})"
        denied = f"{self.action} access denied for {self.name}, repository does not exist or may require login"
        return Answered(f"{denied}{login}: {why}", status=401)

    def refusal(self, response: Response, what: str) -> Answered:
        """The error for an answer that is not a wished one."""
        status = response.status
        codes, said = _errors(response)
        if status in (401, 403) or "NAME_UNKNOWN" in codes:
            error = self._denied(said or f"{self._who} answers {status}")
            error.status, error.codes = status, codes
            return error
        wait = retry_after(response.headers.get("Retry-After"))
        if status == 429:
            when = f"; it asks to wait {wait:.0f} seconds" if wait is not None else "; try again later, or log in"
            message = f"{self._who}: too many requests: {said or 'its limit is reached'}{when}"
        elif status == 404:
            message = f"{what} not found: {said or 'the registry does not have it'}"
        else:
            message = f"{self._who} answers {status} for the {what}: {said or 'without a reason'}"
            if status == 400 and not codes and self.endpoint.server.scheme == "http":  # as Go's TLS servers say it
                message += "; if it speaks TLS, write insecure = false or ca = … for it in registries.toml"
        return Answered(message, status=status, codes=codes, retry_after=wait)


def _errors(response: Response) -> tuple[tuple[str, ...], str]:
    """The codes and the text of an error document; of a web page that it is one."""
    data = bytearray()
    try:
        while len(data) < _REASON and (block := response.read(_REASON)):
            data += block
    except RegistryError:
        pass  # the status has said enough
    if (response.headers.get("Content-Type") or "").startswith("text/html"):
        return (), "with a web page"
    content = _json(bytes(data))
    errors = content.get("errors") if isinstance(content, dict) else None
    if not isinstance(errors, list):
        return (), printable(data.decode(errors="replace"))
    entries = [entry for entry in errors if isinstance(entry, dict)]
    codes = tuple(str(entry.get("code") or "") for entry in entries)
    texts = [f"{entry.get('code') or ''}: {entry.get('message') or ''}".strip(": ").lower() for entry in entries]
    return codes, printable("; ".join(dict.fromkeys(texts)))


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _begins_at(content_range: str | None, start: int) -> bool:
    """Content-Range: bytes START-END/SIZE (RFC 9110, 14.4)."""
    unit, _, span = (content_range or "").strip().partition(" ")
    return unit == "bytes" and span.partition("-")[0] == str(start)
