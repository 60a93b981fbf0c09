"""The three networks by name, and what each makes of a container."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.engine.networks import files
from runtime.engine.networks.table import NAMES, open_network
from runtime.errors import NetworkError
from tests.runtime.engine.networks.conftest import Trace
from tests.runtime.engine.networks.netns import Box, routes


def test_names(tmp_path: Path) -> None:
    assert [open_network(name, str(tmp_path)).name for name in NAMES] == ["bridge", "none", "host"]
    with pytest.raises(NetworkError, match=r"no such network: overlay \(there are bridge, none, host\)"):
        open_network("overlay", str(tmp_path))


@pytest.mark.needs("netns", "program:nft")
def test_none_adds_nothing(tmp_path: Path, box: Callable[[], Box], trace: Callable[[], Trace]) -> None:
    before = trace()
    network = open_network("none", str(tmp_path))
    container = box()
    assert network.attach(container.pid, "one") is None
    assert set(container.links()) == {"lo"}
    assert container.inside(routes) == set()
    assert trace() == before
    network.detach("one")
    network.cleanup([])
    assert "127.0.0.1\tweb" in network.hosts("web", None)
    assert "nameserver" in network.resolv()


@pytest.mark.needs("netns", "program:nft")
def test_host_is_the_hosts(tmp_path: Path, host: None, trace: Callable[[], Trace]) -> None:
    before = trace()
    network = open_network("host", str(tmp_path))
    assert network.attach(1, "one") is None
    network.detach("one")
    network.cleanup([])
    assert trace() == before
    assert network.resolv() == files.read("/etc/resolv.conf")
    assert network.hosts("web", None)


def test_the_bridgeless_import_no_bridge(tmp_path: Path) -> None:
    program = (
        "import sys; from runtime.engine.networks.table import open_network; open_network(sys.argv[1], '/nonexistent');"
        "sys.exit(not {'sqlite3', 'ipaddress', 'threading'}.isdisjoint(sys.modules))"
    )
    for name in ("none", "host"):
        assert subprocess.run([sys.executable, "-c", program, name]).returncode == 0
