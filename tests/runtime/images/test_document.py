from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.images import document
from runtime.images.document import Descriptor, Listed, choose_platform
from runtime.images.platforms import Platform, compatible, host

D = "sha256:" + "0123456789abcdef" * 4
CONFIG = {"mediaType": document.CONFIG, "digest": D, "size": 5}
LAYER = {"mediaType": document.LAYER_GZIP, "digest": D, "size": 7}
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def made(**changes: object) -> bytes:
    content = {"schemaVersion": 2, "mediaType": document.MANIFEST, "config": CONFIG, "layers": [LAYER], **changes}
    return json.dumps({key: value for key, value in content.items() if value is not ...}).encode()


def test_a_manifest() -> None:
    parsed = document.parse_manifest(made(unknown={"a": 1}, layers=[LAYER, {**LAYER, "annotations": {}}]))
    assert parsed.config == Descriptor(document.CONFIG, D, 5)
    assert parsed.layers == (Descriptor(document.LAYER_GZIP, D, 7),) * 2


@pytest.mark.parametrize(
    ("changes", "said", "media_type"),
    [
        ({}, "", document.MANIFEST),
        ({"mediaType": ...}, "", document.MANIFEST),
        ({"mediaType": ...}, f"{DOCKER}; charset=utf-8", DOCKER),
        ({"mediaType": DOCKER}, "application/json", DOCKER),
        ({"mediaType": ..., "config": ..., "layers": ..., "manifests": []}, "", document.INDEX),
    ],
)
def test_media_types(changes: dict[str, object], said: str, media_type: str) -> None:
    assert document.media_type(made(**changes), said) == media_type


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schemaVersion": 1}, "docker's schema 1"),
        ({"manifests": []}, "neither an image's manifest nor an index"),  # CVE-2021-41190
        ({"mediaType": document.INDEX}, "neither an image's manifest nor an index"),
        ({"mediaType": DOCKER, "config": ..., "layers": ..., "manifests": []}, "neither"),
        ({"mediaType": 7}, "neither"), ({"config": ..., "layers": ...}, "neither"),
    ],
)  # fmt: skip
def test_what_could_be_taken_for_both_is_neither(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        document.media_type(made(**changes))


BAD_MANIFESTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "is no JSON"),
    "an array": (b"[]", "is no JSON object"),
    "brackets": (b"[" * 100_000, "is no JSON"),
    "too large": (b'{"a": "' + b"x" * (4 << 20) + b'"}', "is over the 4194304 bytes"),
    "no configuration": (made(config=...), "has a descriptor that is no JSON object"),
    "an artifact": (made(config={**CONFIG, "mediaType": "application/vnd.oci.empty.v1+json"}), "is no image's"),
    "a path": (made(config={**CONFIG, "digest": "sha256:../../../etc/passwd"}), "is no sha256 digest"),
    "sha512": (made(config={**CONFIG, "digest": "sha512:" + "0" * 128}), "is no sha256 digest"),
    "a digest with a line": (made(config={**CONFIG, "digest": D + "\n"}), "is no sha256 digest"),
    "a large configuration": (made(config={**CONFIG, "size": (4 << 20) + 1}), "4194304 are allowed"),
    "negative": (made(layers=[{**LAYER, "size": -1}]), "has -1 bytes"),
    "no number": (made(layers=[{**LAYER, "size": True}]), "has True bytes"),
    "a float": (made(layers=[{**LAYER, "size": 1.5}]), "has 1.5 bytes"),
    "petabytes": (made(layers=[{**LAYER, "size": 1 << 50}]), "are allowed"),
    "many layers": (made(layers=[LAYER] * 501), "has 501 layers, 500 are allowed"),
    "layers no array": (made(layers={"0": LAYER}), "has 'layers' that is no JSON array"),
    "encrypted": (made(layers=[{**LAYER, "mediaType": document.LAYER + "+encrypted"}]), "cannot unpack"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_bad_manifests(name: str) -> None:
    data, says = BAD_MANIFESTS[name]
    with pytest.raises(ValueError, match=says) as caught:
        document.parse_manifest(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_configuration() -> None:
    content = {"os": "linux", "architecture": "arm", "variant": "v7", "config": None, "history": [{"a": 1}, 3],
               "rootfs": {"diff_ids": [D]}, "created": 5}  # fmt: skip
    parsed = document.parse_configuration(json.dumps(content).encode())
    assert parsed[:5] == (Platform("linux", "arm", "v7"), (D,), {}, "", ({"a": 1},))
    assert document.parse_configuration(b"{}").diff_ids == ()


@pytest.mark.parametrize(
    "content",
    [
        {"rootfs": {"diff_ids": [5]}}, {"rootfs": {"diff_ids": ["x"]}}, {"config": "x"}, {"history": {"a": 1}},
        *({"config": {key: value}} for key, value in (
            ("Env", 5), ("Env", [1]), ("Env", ["A=\ud800"]), ("Env", ["A=\0"]), ("Entrypoint", 7), ("Cmd", "/bin/sh"),
            ("User", 0), ("WorkingDir", ["/"]), ("StopSignal", 15), ("Labels", [1]), ("Labels", {"a": 1}),
            ("Volumes", ["/x"]), ("ExposedPorts", "80"),
        )),
    ],
)
def test_bad_configurations(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has ") as caught:
        document.parse_configuration(json.dumps(content).encode())
    assert str(caught.value).isprintable()


def test_a_configuration_may_have_names_that_are_no_utf8_and_nothing() -> None:
    content = {"config": {"Env": ["A=\udce9"], "Cmd": None, "Labels": {}, "Healthcheck": {"Test": 5}}}
    assert document.parse_configuration(json.dumps(content).encode()).config == content["config"]


def listed(*platforms: Platform | None, media_type: str = document.MANIFEST) -> list[Listed]:
    return [
        Listed(Descriptor(media_type, f"sha256:{number:064x}", 1), platform, {})
        for number, platform in enumerate(platforms)
    ]


ARM, AMD, UNKNOWN = Platform("linux", "arm64", "v8"), Platform("linux", "amd64"), Platform("unknown", "unknown")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((ARM, AMD), 1), ((AMD, ARM), 0), ((UNKNOWN, AMD), 1), ((None,), 0), ((None, AMD), 1), ((ARM, None), 1),
        ((AMD._replace(variant="v3"), AMD._replace(variant="v1")), 1),  # this machine may have no v3
        ((AMD._replace(features=("erofs",)), AMD), 1), ((Platform("", "x86_64"),), 0),
        ((Platform("windows", "amd64"), AMD), 1), ((Platform("linux", "386"), AMD), 1),
        ((Platform("linux", "386"),), 0),
    ],
)  # fmt: skip
def test_platforms(offered: tuple[Platform | None, ...], chosen: int) -> None:
    assert choose_platform(listed(*offered), AMD).digest == f"sha256:{chosen:064x}"


def test_features_that_are_needed() -> None:
    content: dict[str, Any] = {"os": "linux", "architecture": "amd64", "os.features": ["erofs", "\x1b[2J", 7]}
    content["rootfs"] = {"type": "layers", "diff_ids": [D]}
    needing = document.parse_configuration(json.dumps(content).encode()).platform
    assert needing == AMD._replace(features=("erofs", "?", "7"))
    with pytest.raises(ValueError, match=r"no image for linux/amd64; it has linux\(\+7\+\?\+erofs\)/amd64$"):
        choose_platform(listed(needing), AMD)


@pytest.mark.parametrize("offered", [(), (ARM,), (UNKNOWN, ARM), (Platform("windows", "amd64"),)])
def test_no_image_for_this_machine(offered: tuple[Platform, ...]) -> None:
    with pytest.raises(ValueError, match="has no image for linux/amd64; it has ") as caught:
        choose_platform(listed(*offered), AMD)
    assert "unknown" not in str(caught.value)


def test_this_machine_is_one_of_its_platforms() -> None:
    own = compatible(host())
    assert own[0].os == "linux"
    assert choose_platform(listed(Platform("plan9", "mips"), own[-1], own[0])).digest == f"sha256:{2:064x}"


def test_an_index() -> None:
    data = document.encode({"manifests": [
        {"mediaType": document.MANIFEST, "digest": D, "size": 3, "platform": {"os": "linux", "architecture": "arm64"},
         "annotations": {"a": "b", "c": 5}},
        {"mediaType": "text/plain", "digest": D, "size": 3},
    ]})  # fmt: skip
    first, second = document.parse_index(data)
    assert first == Listed(Descriptor(document.MANIFEST, D, 3), Platform("linux", "arm64"), {"a": "b"})
    assert second.platform is None
    with pytest.raises(ValueError, match="has no image"):
        choose_platform([second])
    with pytest.raises(ValueError, match="1001 manifests, 1000 are allowed"):
        document.parse_index(document.encode({"manifests": [{}] * 1001}))
