"""Registries that lie, stall, break off and never end: each gets a sentence, and what is left is to go on from."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ImageError, RegistryError
from runtime.events import unheard
from runtime.images import document
from runtime.images.reference import parse
from runtime.registry.credentials import Login
from runtime.registry.pull import pull_all
from tests.runtime.registry.conftest import Puller
from tests.runtime.registry.lying import CHUNK, Honest, Server, digest_of, made

Lying = Callable[..., Server]
BIG = 20 * CHUNK


def test_the_truth(puller: Puller, lying: Lying) -> None:
    """The tests' registry itself, and that layers come three at a time."""
    server = lying(Honest, made((1000, 2000, BIG, 4000)))
    pulled = puller.pull(f"{server.host}/x")
    assert pulled.newer and pulled.digest == server.image.digest
    assert puller.left() == {}
    assert puller.store.get(f"{server.host}/x").blobs[2].digest == server.image.layers[2]
    assert not puller.pull(f"{server.host}/x").newer
    assert len(server.paths()) == 7, "a second pull asks for the manifest only"


class BreaksOff(Honest):
    """Each connection gives CHUNK bytes of a blob at most."""

    def pour(self, digest: str, data: bytes) -> None:
        super().pour(digest, data[:CHUNK])
        if len(data) > CHUNK:
            self.hang_up()


def test_a_blob_that_breaks_off_is_gone_on_with_and_not_for_ever(puller: Puller, lying: Lying) -> None:
    server = lying(BreaksOff, made((3 * CHUNK,)))
    puller.pull(f"{server.host}/x")
    (layer,) = server.image.layers
    assert server.sent[layer] == len(server.image.blobs[layer]), "no byte came twice"
    assert len(puller.pauses) == 3 and puller.pauses[2] > puller.pauses[0]

    endless = lying(BreaksOff, made((BIG,)))
    assert "closed the connection in the middle" in puller.refused(f"{endless.host}/x")
    (layer,) = endless.image.layers
    assert puller.left()[layer[7:]] == endless.sent[layer] == 5 * CHUNK
    puller.refused(f"{endless.host}/x")
    assert puller.left()[layer[7:]] == endless.sent[layer] == 10 * CHUNK, "the next pull goes on from there"


class NoRange(BreaksOff):
    """Breaks off once, and does not know Range."""

    def blob(self, digest: str) -> None:
        del self.headers["Range"]
        super().blob(digest)

    def pour(self, digest: str, data: bytes) -> None:
        if self.server.sent.get(digest, 0):
            Honest.pour(self, digest, data)
        else:
            super().pour(digest, data)


def test_a_registry_without_range_sends_all_again(puller: Puller, lying: Lying) -> None:
    server = lying(NoRange, made((3 * CHUNK,)))
    puller.pull(f"{server.host}/x")
    (layer,) = server.image.layers
    assert server.sent[layer] == len(server.image.blobs[layer]) + CHUNK


class OtherRange(BreaksOff):
    def begin(self, status: int, **headers: str) -> None:
        if "Content-Range" in headers:
            headers["Content-Range"] = headers["Content-Range"].replace("bytes ", "bytes 1")
        super().begin(status, **headers)


def test_another_range_than_asked_for(puller: Puller, lying: Lying) -> None:
    server = lying(OtherRange, made((3 * CHUNK,)))
    assert "another part" in puller.refused(f"{server.host}/x")


class Forges(Honest):
    def pour(self, digest: str, data: bytes) -> None:
        super().pour(digest, bytes(len(data)))


def test_a_forged_blob(puller: Puller, lying: Lying) -> None:
    server = lying(Forges)
    assert "another digest" in puller.refused(f"{server.host}/x")
    assert set(puller.left().values()) <= {0}, "none of it is gone on with"


def test_a_damaged_beginning_is_got_anew_once(puller: Puller, lying: Lying) -> None:
    """The part of an earlier pull is not what it was: the blob comes again from its first byte."""
    server = lying(Honest, made((3 * CHUNK,)))
    (layer,) = server.image.layers
    puller.incoming.mkdir()
    (puller.incoming / layer[7:]).write_bytes(b"damage" * 100)
    puller.pull(f"{server.host}/x")
    assert server.sent[layer] == 2 * len(server.image.blobs[layer]) - 600


class LiesAboutManifest(Honest):
    def manifest(self, reference: str) -> None:
        image = self.server.image
        forged = image.manifest.replace(b"schemaVersion", b"schemaVersion") + b" "
        self.answer(200, forged, image.media_type, Docker_Content_Digest=image.digest)


@pytest.mark.parametrize("form", [":latest", "@DIGEST"])
def test_a_manifest_that_is_not_what_its_digest_says(puller: Puller, lying: Lying, form: str) -> None:
    server = lying(LiesAboutManifest)
    assert "lies, or was tampered with" in puller.refused(
        f"{server.host}/x{form.replace('DIGEST', server.image.digest)}"
    )


class SaysOtherLength(Honest):
    def begin(self, status: int, **headers: str) -> None:
        if "Content-Length" in headers and "/blobs/" in self.path:
            headers["Content-Length"] = str(int(headers["Content-Length"]) + int(self.server.more["off"]))
        super().begin(status, **headers)


@pytest.mark.parametrize("off", [-7, 7])
def test_a_length_that_is_not_the_manifests(puller: Puller, lying: Lying, off: int) -> None:
    server = lying(SaysOtherLength, off=off)
    assert "where its manifest says" in puller.refused(f"{server.host}/x")


class Endless(Honest):
    """Blobs in chunks (RFC 9112, 7.1) without end, or manifests."""

    def blob(self, digest: str) -> None:
        self.flood("blob", digest) if self.server.more["what"] == "blob" else super().blob(digest)

    def manifest(self, reference: str) -> None:
        self.flood("manifest", "") if self.server.more["what"] == "manifest" else super().manifest(reference)

    def flood(self, what: str, digest: str) -> None:
        self.begin(200, Transfer_Encoding="chunked", Content_Type=document.MANIFEST)
        head = self.server.image.blobs.get(digest, b"")
        for piece in filter(None, (head,)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        while not self.server.over.is_set():
            self.wfile.write(b"%x\r\n%s\r\n" % (CHUNK, bytes(CHUNK)))


def test_a_blob_without_end_is_cut_off(puller: Puller, lying: Lying) -> None:
    server = lying(Endless, what="blob")
    assert re.search(r"sends more than the \d+ bytes of sha256:", puller.refused(f"{server.host}/x"))


def test_a_manifest_without_end_is_cut_off(puller: Puller, lying: Lying) -> None:
    server = lying(Endless, what="manifest")
    assert f"more than {document.MAX_DOCUMENT} bytes" in puller.refused(f"{server.host}/x")


class Stalls(Honest):
    def blob(self, digest: str) -> None:
        data = self.server.image.blobs[digest]
        if digest == self.server.image.layers[0] and not self.headers.get("Range"):
            self.begin(200, **{"Content-Length": str(len(data))})
            super().pour(digest, data[:CHUNK])
            self.wfile.flush()
            self.server.over.wait(60)
            self.hang_up()
        else:
            super().blob(digest)


def _patience(config: Path, server: Server, seconds: float) -> None:
    (config / "registries.toml").write_text(f'[registry."{server.host}"]\ntimeout = {seconds}\n')


def test_a_stalled_blob_is_gone_on_with(puller: Puller, lying: Lying, config: Path) -> None:
    server = lying(Stalls, made((3 * CHUNK,)))
    _patience(config, server, 1)
    puller.pull(f"{server.host}/x")
    (layer,) = server.image.layers
    assert server.sent[layer] == len(server.image.blobs[layer])


class Silent(Honest):
    def do_GET(self) -> None:
        self.note()
        self.server.over.wait(60)
        self.hang_up()


def test_no_answer_at_all(puller: Puller, lying: Lying, config: Path) -> None:
    server = lying(Silent)
    _patience(config, server, 0.05)
    assert "does not answer within 0.05 seconds" in puller.refused(f"{server.host}/x")
    assert len(puller.pauses) == 4, "it was asked again, and not for ever"


class Trickles(Honest):
    """A byte now and then: too few to be a registry that is only slow."""

    def manifest(self, reference: str) -> None:
        self.begin(200, **{"Content-Length": "1000000", "Content-Type": document.MANIFEST})
        while not self.server.over.wait(0.01):
            self.wfile.write(b" ")


class Slow(Honest):
    """Slow, but it comes."""

    def pour(self, digest: str, data: bytes) -> None:
        for at in range(0, len(data), CHUNK // 4):
            self.server.over.wait(0.04)
            super().pour(digest, data[at : at + CHUNK // 4])


def test_a_trickle_is_a_stall_and_slowness_is_not(puller: Puller, lying: Lying, config: Path) -> None:
    server = lying(Trickles)
    _patience(config, server, 0.3)
    assert "has stalled" in puller.refused(f"{server.host}/x")
    server = lying(Slow, made((8 * CHUNK,)))
    _patience(config, server, 1)
    puller.pull(f"{server.host}/x")
    assert len(server.paths()) == 3, "nothing was asked for twice"


class WebPage(Honest):
    def do_GET(self) -> None:
        self.answer(int(self.server.more["status"]), b"<html>Welcome \x1b[31m</html>", "text/html; charset=utf-8")


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_web_page(puller: Puller, lying: Lying, status: int) -> None:
    server = lying(WebPage, status=status)
    said = puller.refused(f"{server.host}/x")
    assert "web page" in said
    assert "\x1b" not in said


class Redirects(Honest):
    def manifest(self, reference: str) -> None:
        self.answer(307, b"", Location=str(self.server.more["to"]).replace("HERE", self.server.host))


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("/v2/x/manifests/latest", "in a circle"), ("http://HERE/v2/x/manifests/again", "in a circle"),
        ("file:///etc/passwd", "no web address"), ("http://HERE:bad/", "no web address"),
        ("http://127.0.0.1:1/", "connection refused"),
        ("http://a b/", "no web address"), ("http://h\xe9/", "no web address"),
    ],
)  # fmt: skip
def test_redirects_that_lead_nowhere(puller: Puller, lying: Lying, to: str, why: str) -> None:
    server = lying(Redirects, to=to)
    assert why in puller.refused(f"{server.host}/x")


class BlobsElsewhere(Honest):
    def blob(self, digest: str) -> None:
        self.answer(307, b"", Location=f"http://{self.server.more['store']}/v2/x/blobs/{digest}?signature=1")


def test_a_redirect_to_another_host_goes_without_the_password(
    puller: Puller, lying: Lying, config: Path
) -> None:
    class Asks(BlobsElsewhere):
        def do_GET(self) -> None:
            if "Authorization" not in self.headers:
                self.note()
                return self.error(401, "UNAUTHORIZED", "who are you?", WWW_Authenticate='Basic realm="x"')
            return super().do_GET()

    image = made()
    store = lying(Honest, image)
    server = lying(Asks, image, store=store.host)
    puller.access().credentials.keep(server.host, Login("me", "secret"))
    puller.pull(f"{server.host}/x")
    assert len(store.asked) == 2
    assert all("Authorization" not in headers for _, _, headers in store.asked)
    assert sum("Authorization" not in headers for _, _, headers in server.asked) == 1, "it is told from then on"


class Encodes(Honest):
    def manifest(self, reference: str) -> None:
        packed = gzip.compress(self.server.image.manifest)
        self.answer(200, packed, document.MANIFEST, Content_Encoding="gzip")


def test_an_encoding_that_was_not_asked_for(puller: Puller, lying: Lying) -> None:
    assert "Content-Encoding gzip" in puller.refused(f"{lying(Encodes).host}/x")


class Busy(Honest):
    """Refuses the first answers with a status, maybe with Retry-After."""

    def manifest(self, reference: str) -> None:
        if len(self.server.asked) <= 2:
            headers = {"Retry_After": self.server.more["after"]} if self.server.more["after"] else {}
            return self.error(int(self.server.more["status"]), "TOOMANYREQUESTS", "slow down", **headers)
        return super().manifest(reference)


@pytest.mark.parametrize(("status", "after"), [(503, ""), (502, ""), (504, ""), (429, "7"), (503, "7")])
def test_a_busy_registry_is_asked_again(puller: Puller, lying: Lying, status: int, after: str) -> None:
    server = lying(Busy, status=status, after=after)
    puller.pull(f"{server.host}/x")
    assert len(puller.pauses) == 2
    assert puller.pauses[0] == 7 if after else puller.pauses[0] <= 0.5


@pytest.mark.parametrize(
    ("status", "after", "said"),
    [(429, "", "too many requests"), (429, "3600", "asks to wait 3600 seconds"), (500, "", "answers 500")],
)
def test_what_will_not_pass_is_not_tried_again(
    puller: Puller, lying: Lying, status: int, after: str, said: str
) -> None:
    server = lying(Busy, status=status, after=after)
    refused = puller.refused(f"{server.host}/x")
    assert said in refused and "slow down" in refused
    assert puller.pauses == []


def test_no_registry_there(puller: Puller) -> None:
    assert "no such host: nowhere.invalid" in puller.refused("nowhere.invalid/x")
    assert "127.0.0.1:1: connection refused" in puller.refused("127.0.0.1:1/x")
    assert puller.pauses == []


def test_what_is_not_there(puller: Puller, lying: Lying) -> None:
    server = lying(Honest)
    missing = f"sha256:{'0' * 64}"
    assert f"manifest for {server.host}/x@{missing} not found" in puller.refused(f"{server.host}/x@{missing}")
    server.image.blobs.clear()
    assert "blob sha256:" in puller.refused(f"{server.host}/x")


class Refuses(Honest):
    def do_GET(self) -> None:
        self.error(int(self.server.more["status"]), "DENIED", "requested access to the resource is denied")


@pytest.mark.parametrize("status", [401, 403])
def test_denied(puller: Puller, lying: Lying, status: int) -> None:
    server = lying(Refuses, status=status)
    said = puller.refused(f"{server.host}/x")
    assert f"pull access denied for {server.host}/x, repository does not exist or may require login" in said
    assert f"runtime login {server.host}" in said


class Tags(Honest):
    """Lists of tags, in pages."""

    def do_GET(self) -> None:
        if "/tags/list" not in self.path:
            return super().do_GET()
        self.note()
        page = int(self.path.partition("page=")[2] or 0)
        pages: list[bytes] = self.server.more["pages"]
        link = {"Link": f'</v2/x/tags/list?page={page + 1}>; rel="next"'} if page + 1 < len(pages) else {}
        return self.answer(200, pages[page], **link)


def test_tags_come_in_pages(puller: Puller, lying: Lying) -> None:
    server = lying(Tags, pages=[b'{"tags": ["a", "b"]}', b'{"tags": ["c"]}'])
    assert puller.tags(f"{server.host}/x") == ["a", "b", "c"]
    endless = lying(Tags, pages=[b'{"tags": ["a", "b"]}'] * 100)
    assert puller.tags(f"{endless.host}/x") == ["a", "b"], "a page that adds nothing is the last"
    many = lying(Tags, pages=[f'{{"tags": ["{"t" * 99}{n}"]}}'.encode() * 1 for n in range(9)])
    assert len(puller.tags(f"{many.host}/x")) == 9


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b'{"tags": null}', "has no tags"), (b"[]", "something else as"), (b'{"tags": [7]}', "something else as"),
        (b'{"tags": ["../x"]}', "can be none"), (b'{"tags": ["a\\n"]}', "can be none"),
        (b'{"tags": ["a@sha256:%s"]}' % (b"0" * 64), "can be none"),
    ],
)  # fmt: skip
def test_tags_that_are_none(puller: Puller, lying: Lying, page: bytes, why: str) -> None:
    server = lying(Tags, pages=[page])
    with pytest.raises((RegistryError, ImageError), match=why):
        pull_all(puller.store, puller.access(), parse(f"{server.host}/x"), puller.driver, unheard)
    assert len(server.asked) == 1


FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
ONE = {"digest": f"sha256:{'1' * 64}", "size": 1}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}, "schema 1"),
        ({"layers": [{"mediaType": FOREIGN, **ONE, "urls": ["http://x/"]}]}, "foreign layer"),
        ({"layers": [{"mediaType": "text/plain", **ONE}]}, "cannot unpack"),
        ({"layers": [{"mediaType": document.LAYER, "digest": "sha256:../../etc", "size": 1}]}, "no sha256 digest"),
        ({"layers": [{"mediaType": document.LAYER, "digest": ONE["digest"], "size": -1}]}, "bytes"),
        ({"layers": [{"mediaType": document.LAYER, "digest": ONE["digest"], "size": 1 << 50}]}, "bytes"),
        ({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", **ONE}}, "is no image's"),
        ({"config": []}, "no JSON object"),
        ({"layers": 7}, "no JSON array"),
        ({"manifests": []}, "neither"),
    ],
)
def test_manifests_that_no_image_has(
    puller: Puller, lying: Lying, changes: dict[str, Any], why: str
) -> None:
    server = lying(Honest, made(**changes))
    assert why in puller.refused(f"{server.host}/x")
    assert len(server.paths()) == 1, "nothing of it was fetched"


def test_an_index_that_leads_in_circles(puller: Puller, lying: Lying) -> None:
    class Nested(Honest):
        """An index of an index of …, each with the digest that the one above says."""

        def manifest(self, reference: str) -> None:
            for depth in range(6):
                data = _index(depth)
                if reference in ("latest" if depth == 5 else "", digest_of(data)):
                    return self.answer(200, data, document.INDEX)
            raise AssertionError(reference)

    def _index(depth: int) -> bytes:
        inner = _index(depth - 1) if depth else b"{}"
        entry = {"mediaType": document.INDEX, "digest": digest_of(inner), "size": len(inner)}
        return json.dumps({"schemaVersion": 2, "mediaType": document.INDEX, "manifests": [entry]}).encode()

    assert "nested" in puller.refused(f"{lying(Nested).host}/x")


class SaysItHas(Honest):
    """HEAD says yes to every blob; the manifest is refused for want of them until they came."""

    def do_HEAD(self) -> None:
        self.note()
        self.answer(200, b"")

    def put_manifest(self, data: bytes) -> None:
        wanted = {blob["digest"] for blob in (*json.loads(data)["layers"], json.loads(data)["config"])}
        if wanted <= set(self.server.pushed):
            super().put_manifest(data)
        else:
            self.error(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")


def _have(puller: Puller, lying: Lying, name: str, sizes: tuple[int, ...] = (1000, 2000)) -> None:
    """An image in the store, named `name`."""
    source = lying(Honest, made(sizes))
    puller.pull(f"{source.host}/x")
    puller.store.tag(f"{source.host}/x", name)


def test_a_registry_that_says_that_it_has_blobs_and_has_not(puller: Puller, lying: Lying) -> None:
    server = lying(SaysItHas)
    _have(puller, lying, f"{server.host}/y")
    puller.push(f"{server.host}/y")
    assert len(server.pushed) == 4
    lies = lying(type("Never", (SaysItHas,), {"put_manifest": lambda self, data: self.error(
        400, "BLOB_UNKNOWN", "blob unknown to registry")}))  # fmt: skip
    puller.store.tag(f"{server.host}/y", f"{lies.host}/y")
    with pytest.raises(RegistryError, match="blob unknown"):
        puller.push(f"{lies.host}/y")
    assert len(lies.paths("PUT")) == 5, "three blobs and twice the manifest"


class StoresSomethingElse(Honest):
    def put_manifest(self, data: bytes) -> None:
        self.answer(201, b"", Docker_Content_Digest=digest_of(b"else"))


def test_a_registry_that_stores_something_else(puller: Puller, lying: Lying) -> None:
    server = lying(StoresSomethingElse)
    _have(puller, lying, f"{server.host}/y")
    with pytest.raises(RegistryError, match="has stored something else"):
        puller.push(f"{server.host}/y")


def test_a_failure_ends_the_other_downloads_at_once(puller: Puller, lying: Lying) -> None:
    class OneIsMissing(Honest):
        """The first layer is not there; of the others nothing more comes after a while."""

        def blob(self, digest: str) -> None:
            layers = self.server.image.layers
            if digest == layers[0]:
                for other in layers[1:]:
                    while other not in self.server.sent:
                        assert not self.server.over.wait(0.001)
                return self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
            if digest in layers:
                data = self.server.image.blobs[digest]
                self.begin(200, **{"Content-Length": str(len(data))})
                self.pour(digest, data[:CHUNK])
                self.server.over.wait(60)
                return self.hang_up()
            return super().blob(digest)

    server = lying(OneIsMissing, made((CHUNK, 3 * CHUNK, 4 * CHUNK)))
    began = time.monotonic()
    assert "blob unknown" in puller.refused(f"{server.host}/x")
    assert time.monotonic() - began < 10, "the time-out is 30 s"
    assert sorted(puller.left().values())[-2:] == [CHUNK, CHUNK]


LONG = "a" * 64 + ".example"


class NoAddress(Honest):
    """Names addresses that are none, by the header that the test asks for."""

    def manifest(self, reference: str) -> None:
        to = self.server.more["to"]
        if self.server.more["by"] == "realm":
            return self.error(401, "UNAUTHORIZED", "no", WWW_Authenticate=f'Bearer realm="{to}",service="s"')
        return self.answer(307, b"", Location=to)


@pytest.mark.parametrize("by", ["Location", "realm"])
@pytest.mark.parametrize("to", ["http://[::1", "http://[bad]/x", "http://a..b/", f"http://{LONG}/", "http://:80/"])
def test_an_address_that_is_none(puller: Puller, lying: Lying, by: str, to: str) -> None:
    """urllib raises ValueError for some of them, and the codec "idna" UnicodeError: internal errors once."""
    server = lying(NoAddress, by=by, to=to)
    assert "no web address" in puller.refused(f"{server.host}/x")


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"x"], ids=["interim answers", "a header"])
def test_a_head_without_an_end(puller: Puller, config: Path, piece: bytes) -> None:
    """Something comes all the time, so no recv(2) ever waits for long."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        (config / "registries.toml").write_text(f'[registry."{host}"]\ntimeout = 0.2\n')

        def serve() -> None:
            for _ in range(5):  # as often as it is tried
                connection, _ = listening.accept()
                with connection, pytest.raises(OSError):
                    connection.recv(65536)
                    connection.sendall(b"" if piece.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nX: ")
                    while not stop.wait(0.001):
                        connection.sendall(piece)
                    raise OSError

        stop = threading.Event()
        server = threading.Thread(target=serve)
        server.start()
        try:
            assert "does not answer within 0.2 seconds" in puller.refused(f"{host}/x")
            assert len(puller.pauses) == 4
        finally:
            stop.set()
            server.join()
