"""The examples are those of github.com/containerd/platforms: platforms_test.go, compare_test.go, database.go."""

from __future__ import annotations

import pytest

from runtime.errors import InvalidValue
from runtime.images import document, platforms
from runtime.images.platforms import compatible, host, normalized, parse_platform, runs


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("linux/amd64", "linux/amd64"), ("linux/x86_64", "linux/amd64"), ("Linux/X86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"), ("linux/amd64/v3", "linux/amd64/v3"), ("linux/i386", "linux/386"),
        ("linux/aarch64", "linux/arm64"), ("linux/arm64/v8", "linux/arm64"), ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"), ("linux/arm", "linux/arm/v7"), ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"), ("linux/armhf", "linux/arm/v7"), ("linux/armel", "linux/arm/v6"),
        ("linux/s390x", "linux/s390x"), ("macos/arm64", "darwin/arm64"), ("aarch64", "linux/arm64"),
        ("armhf", "linux/arm/v7"), ("i386", "linux/386"),
    ],
)  # fmt: skip
def test_names_that_mean_the_same(written: str, means: str) -> None:
    assert str(parse_platform(written)) == means


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "linux/", "/arm", "linux/arm/v7/x", "linux/a b", "x86", "linux/arm\n", "arm64/v9.3", "amd64/linux",
        "armhf/v7", "X86_64/v2/x",
    ],
)  # fmt: skip
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(InvalidValue, match="invalid platform"):
        parse_platform(text)


def test_an_operating_system_alone_is_for_this_machine() -> None:
    assert parse_platform("linux") == host()
    assert parse_platform("windows") == host()._replace(os="windows")


ARM = "arm/v8 arm/v7 arm/v6 arm/v5"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("amd64", "amd64 386"), ("amd64/v3", "amd64/v3 amd64/v2 amd64 386"), ("386", "386"),
        ("arm", "arm/v7 arm/v6 arm/v5"), ("arm/v8", "arm/v8 arm/v7 arm/v6 arm/v5"), ("arm/v5", "arm/v5"),
        ("arm64", f"arm64 {ARM}"), ("arm64/v8.2", f"arm64/v8.2 arm64/v8.1 arm64 {ARM}"),
        ("arm64/v9.1", f"arm64/v9.1 arm64/v9 {' '.join(f'arm64/v8.{n}' for n in range(6, 0, -1))} arm64 {ARM}"),
        ("arm64/strange", "arm64/strange"), ("arm/strange", "arm/strange"), ("riscv64", "riscv64"),
        ("amd64/v99999999999", "amd64/v99999999999 386"),
    ],
)  # fmt: skip
def test_what_runs_where(wanted: str, found: str) -> None:
    """Best first."""
    assert [str(one).removeprefix("linux/") for one in compatible(parse_platform(f"linux/{wanted}"))] == found.split()


def test_what_an_image_needs_has_to_be_there() -> None:
    plain = parse_platform("linux/amd64")
    needing = plain._replace(features=("erofs",))
    assert not runs(needing, plain)
    assert runs(plain, needing) and runs(needing, needing._replace(features=("a", "erofs")))
    assert runs(platforms.Platform("", "x86_64"), plain)


def test_features_are_said() -> None:
    """containerd's FormatAll."""
    needing = parse_platform("linux/arm/v6")._replace(features=("erofs", "a"))
    assert str(needing) == "linux(+a+erofs)/arm/v6"


@pytest.mark.parametrize(
    ("machine", "is_"),
    [("x86_64", "amd64"), ("aarch64", "arm64"), ("armv7l", "arm/v7"), ("armv6l", "arm/v6"), ("armv8l", "arm/v8"),
     ("i686", "386"), ("ppc64le", "ppc64le"), ("s390x", "s390x"), ("riscv64", "riscv64"), ("loongarch64", "loong64")],
)  # fmt: skip
def test_machines(machine: str, is_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Name:
        def __init__(self) -> None:
            self.machine = machine

    monkeypatch.setattr(platforms.os, "uname", Name)  # type: ignore[attr-defined]
    assert str(host()) == f"linux/{is_}" == str(normalized(host()))
    made = document.encode(document.configuration([], {}, created="", comment=""))
    assert document.parse_configuration(made).platform == host()
