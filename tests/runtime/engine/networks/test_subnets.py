from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from runtime.engine.networks import subnets
from runtime.errors import NetworkError

WISHED = IPv4Network("172.30.0.0/16")


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ([], "172.30.0.0/16"),
        (["0.0.0.0/0", "127.0.0.0/8", "192.0.2.0/24"], "172.30.0.0/16"),
        (["172.30.4.0/24"], "172.31.0.0/16"),  # inside the wished one
        (["172.30.0.1/32", "172.31.9.9/32"], "172.29.0.0/16"),
        (["172.16.0.0/12"], "10.255.0.0/16"),  # a company's VPN
        (["172.16.0.0/12", "10.0.0.0/8"], "192.168.240.0/20"),
        (["0.0.0.0/1", "128.0.0.0/1"], "172.30.0.0/16"),  # a VPN that takes everything
    ],
)
def test_choose(reached: list[str], expected: str) -> None:
    assert str(subnets.choose(WISHED, map(IPv4Network, reached))) == expected


def test_no_room_is_a_sentence() -> None:
    with pytest.raises(NetworkError, match=r"routes into 172\.30\.0\.0/16 and every other private subnet"):
        subnets.choose(WISHED, map(IPv4Network, ["172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"]))
