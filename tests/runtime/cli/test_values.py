"""Values as docker's command line writes them."""

from __future__ import annotations

import re

import pytest

from runtime.cli import values
from runtime.cli.usage import UsageError
from runtime.engine.containers.request import Volume
from runtime.errors import InvalidValue


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("1024", 1024), ("512m", 512 << 20), ("1g", 1 << 30), ("1.5k", 1536), ("2MB", 2 << 20),
        ("3MiB", 3 << 20), ("7b", 7), ("1 G", 1 << 30), ("1t", 1 << 40),
    ],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert values.size(text) == expected


@pytest.mark.parametrize(
    "text", ["9999999p", "9" * 400 + "p", "", "m", "-1m", "1x", "1mm", "1e3", "0x10", "1,5g", "½g"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidValue, match="invalid size"):
        values.size(text)


def test_cpus() -> None:
    assert values.cpus("0.5") == 50_000
    assert values.cpus("1") == 100_000
    assert values.cpus("0") == 0
    for wrong in ("0.001", "-1", "100000", "nan", "inf", "two", ""):
        with pytest.raises(InvalidValue):
            values.cpus(wrong)


def test_pids_limit() -> None:
    assert [values.pids_limit(text) for text in ("-1", "0", "7")] == [0, 0, 7]
    for wrong in ("-2", "1.5", "many", "", "1_0", "9" * 5000, "٣"):
        with pytest.raises(InvalidValue):
            values.pids_limit(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", Volume("/a", "/b", False)),
        ("/a:/b:ro", Volume("/a", "/b", True)),
        ("/a:/b:rw", Volume("/a", "/b", False)),
        ("/a/../c/:/b//d/", Volume("/c", "/b/d", False)),
        ("//a:/b/../..//c", Volume("//a", "/c", False)),
    ],
)
def test_volumes(text: str, expected: Volume) -> None:
    assert values.volume(text) == expected


@pytest.mark.parametrize(
    "text", ["", "/a", "/a:", ":/b", "a:/b", "/a:b", "/a:/", "/a:/b:rx", "/a:/b:ro:ro", "/a:/b/.."]
)
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(InvalidValue, match="invalid volume"):
        values.volume(text)


def test_variables() -> None:
    environ = {"HERE": "there"}
    given = [values.variable(text, environ) for text in ("A=1", "B=", "C=a=b", "HERE", "GONE")]
    assert given == ["A=1", "B=", "C=a=b", "HERE=there", "GONE"]
    for wrong in ("", "=x"):
        with pytest.raises(InvalidValue):
            values.variable(wrong, environ)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["size"], "write NAME=VALUE"),
        (["size="], "write NAME=VALUE"),
        (["dm.fs=xfs"], "has the storage option size and not 'dm.fs'"),
        (["size=0"], "the smallest size of a container is 1m, not 0"),
        (["size=much"], "invalid size"),
    ],
)
def test_storage_options_of_a_container_that_cannot_be_meant(words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        values.quota(words)
