"""What holds of a container that is to be made, whoever asks for it."""

from __future__ import annotations

import os

import pytest

from runtime.engine.containers import request
from runtime.engine.containers.request import CreateRequest, Volume
from runtime.errors import InvalidValue

GOOD = CreateRequest("box")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (GOOD._replace(image=""), "the name of the image is empty"),
        (GOOD._replace(name="a/b"), "invalid container name 'a/b'"),
        (GOOD._replace(hostname="a_b!"), "invalid hostname: 'a_b!'"),
        (GOOD._replace(env=("A=1", "=x")), "invalid environment variable: '=x'"),
        (GOOD._replace(env=("A=\0",)), "invalid environment variable"),
        (GOOD._replace(workdir="here"), "the working directory 'here' is not an absolute path"),
        (GOOD._replace(volumes=(Volume("a", "/b", True),)), "volume 'a:/b:ro': the source 'a' is not an absolute path"),
        (GOOD._replace(volumes=(Volume("/a", "b", False),)), "the destination 'b' is not an absolute path"),
        (GOOD._replace(volumes=(Volume("/a", "/b/..", False),)), "the destination cannot be '/'"),
        (GOOD._replace(volumes=(Volume("/a\0", "/b", False),)), "cannot contain a null character"),
        (
            GOOD._replace(volumes=(Volume("/a", "/x", False), Volume("/b", "/x", True))),
            "two volumes have the destination '/x'",
        ),
        (GOOD._replace(memory=5 << 20), "the smallest memory limit is 6m, not 5m"),
        (GOOD._replace(memory=1000), "the smallest memory limit is 6m, not 1000"),
        (GOOD._replace(memory=-1), "the smallest memory limit is 6m"),
        (GOOD._replace(quota=1 << 10), "the smallest size of a container is 1m, not 1k"),
        (GOOD._replace(cpu_quota=-1), "the number of CPUs ranges from 0.01 to"),
    ],
)
def test_what_no_container_can_have(wrong: CreateRequest, why: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        wrong.check()
    assert why in str(refusal.value)


def test_what_one_can_have() -> None:
    GOOD.check()
    volumes = (Volume("/a", "/x", False), Volume("/a", "/y", True))
    GOOD._replace(name="a1", hostname="a.b", env=("A=", "B"), workdir="/", volumes=volumes, memory=6 << 20).check()


def test_the_quota_for_cpus() -> None:
    assert [request.cpu_quota(cpus) for cpus in (0, 0.01, 0.5, 1)] == [0, 1000, 50_000, 100_000]
    most = os.cpu_count() or 1
    assert request.cpu_quota(most) == most * request.CPU_PERIOD
    for wrong in (0.009, -1, most + 1, float("nan"), float("inf")):
        with pytest.raises(InvalidValue, match=f"from 0.01 to {most}.00"):
            request.cpu_quota(wrong)
