from __future__ import annotations

import pytest

from runtime.errors import ImageError
from runtime.images.reference import parse


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("busybox", "busybox:latest"), ("busybox:1.36", "busybox:1.36"), ("busybox:V_1.2-x", "busybox:V_1.2-x"),
        ("me/app", "me/app:latest"), ("a.b/c", "a.b/c:latest"), ("a__b/c-d/e.f_g", "a__b/c-d/e.f_g:latest"),
        ("localhost/app", "localhost/app:latest"), ("localhost:5000/app:2", "localhost:5000/app:2"),
        ("Registry.Example:443/a/b", "Registry.Example:443/a/b:latest"), ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("docker.io/library/busybox", "busybox:latest"), ("docker.io/busybox", "busybox:latest"),
        ("index.docker.io/me/app:3", "me/app:3"), ("library/busybox", "busybox:latest"),
        ("a" * 255, "a" * 255 + ":latest"), ("a:" + "t" * 128, "a:" + "t" * 128), ("a---b", "a---b:latest"),
    ],
)  # fmt: skip
def test_references(text: str, reference: str) -> None:
    assert str(parse(text)) == reference
    assert parse(reference) == parse(text)


DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "shown", "key", "registry", "repository"),
    [
        ("busybox", "busybox:latest", "busybox:latest", "docker.io", "library/busybox"),
        ("me/app:2", "me/app:2", "me/app:2", "docker.io", "me/app"),
        ("localhost:5000/a/b:2", "localhost:5000/a/b:2", "localhost:5000/a/b:2", "localhost:5000", "a/b"),
        ("ghcr.io/me/app", "ghcr.io/me/app:latest", "ghcr.io/me/app:latest", "ghcr.io", "me/app"),
        (f"busybox@{DIGEST}", f"busybox@{DIGEST}", f"busybox@{DIGEST}", "docker.io", "library/busybox"),
        (f"h:5/a:t@{DIGEST}", f"h:5/a:t@{DIGEST}", f"h:5/a@{DIGEST}", "h:5", "a"),
        # Hub's repository "a.b/c" is no repository "c" of a host a.b.
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest", "docker.io", "a.b/c"),
    ],
)
def test_where_a_reference_leads(text: str, shown: str, key: str, registry: str, repository: str) -> None:
    found = parse(text)
    assert (str(found), found.key, found.registry, found.repository) == (shown, key, registry, repository)
    assert parse(shown) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "Busybox", "a/B", "a:", ":a", "a:b:c", "a:.x", "a:-x", "a:" + "t" * 129, "a b", "a\nb", "a//b", "/a", "a/",
        "a_", "_a", "a..b", "a___b", "-a", "../a", "a/../b", "a@sha256:" + "0" * 63, "a@b", "a@",
        "a@sha256:" + "A" * 64, "@sha256:" + "0" * 64,
        "a@sha512:" + "0" * 128, "a@sha256:" + "0" * 64 + ":x", "f" * 64, "a" * 256, "é",
        "a:é", "host.:5/a", "host:port/a", "-h.x/a", "a" * 100_000, "a:\n", "a\n",
    ],
    ids=lambda text: ascii(text)[:40],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
