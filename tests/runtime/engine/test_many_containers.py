"""Many containers at once: each has an address of its own, and when they have gone nothing of them is left.

CONTAINERS=100 starts so many (scripts/nightly).
"""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
from pathlib import Path

import pytest

from drivers.api import Kind
from tests.capabilities import missing
from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, links
from tests.runtime.containers import snapshots

CONTAINERS = int(os.environ.get("CONTAINERS", "10"))
AT_ONCE = 10


def started(runtime: Runtime, names: list[str]) -> list[str]:
    """Their ids; so many of them are on their way at once."""
    ids = []
    for first in range(0, len(names), AT_ONCE):
        begun = [
            runtime.popen("run", "-d", f"--name={name}", IMAGE, "sh", "-c", f"echo {name} >/name; exec sleep 100000")
            for name in names[first : first + AT_ONCE]
        ]
        for process in begun:
            out, err = process.communicate(timeout=4 * PATIENCE)
            assert process.returncode == 0, err
            ids.append(out.decode().strip())
    return ids


def tables() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def more_time(deadline: None) -> None:
    """The more containers, the later a test hangs."""
    signal.setitimer(signal.ITIMER_REAL, 5 * PATIENCE + 10 * CONTAINERS, 5)


@pytest.mark.needs("netns", "program:nft")
def test_each_has_an_address(runtime: Runtime, more_time: None) -> None:
    rules, names = tables(), [f"many-{number}" for number in range(CONTAINERS)]
    ids = started(runtime, names)
    assert len(set(ids)) == CONTAINERS
    assert set(runtime("ps", "-q", "--no-trunc").split()) == set(ids)
    addresses = {}
    for name in names:
        said = runtime("exec", name, "sh", "-c", "cat /name; hostname -i; ip route").split()
        assert said[0] == name
        addresses[name] = ipaddress.IPv4Address(said[1])
        gateway = said[said.index("via") + 1]
    assert len(set(addresses.values())) == CONTAINERS
    assert ipaddress.IPv4Address(gateway) not in addresses.values()
    first, last = names[0], names[-1]
    assert "1 packets received" in runtime("exec", first, "ping", "-c1", "-w5", str(addresses[last]))
    # One goes and its address is free; another comes, and has one that no other has.
    runtime("rm", "-f", first)
    started(runtime, [first])
    again = ipaddress.IPv4Address(runtime("exec", first, "hostname", "-i").strip())
    assert again not in {address for name, address in addresses.items() if name != first}
    assert "1 packets received" in runtime("exec", last, "ping", "-c1", "-w5", str(again))
    removed = runtime("rm", "-f", *names).split()
    assert removed == names
    assert runtime.ids() == []
    assert links() == ["lo"]
    assert tables() == rules
    assert set(snapshots(runtime).values()) <= {Kind.COMMITTED}


FILL = "dd if=/dev/zero of=/fill bs=64k; echo kept >/kept || rm /fill; echo kept >/kept; cat /base /kept; sync"


@pytest.mark.needs("loop", "program:mkfs.btrfs")
def test_one_that_is_full_leaves_its_neighbours_alone(rootfs_tar: Path, tmp_path: Path, deadline: None) -> None:
    """`--storage-opt size=`: it gets an error of its own, and what the others have and write is theirs."""
    if reason := missing("root"):
        pytest.skip(reason)
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "btrfs")
    driver = ("--storage-opt", "btrfs.loopsize=512M")
    runtime(*driver, "import", rootfs_tar, IMAGE)
    runtime(*driver, "run", "--name=base", "--network=none", IMAGE, "sh", "-c", "echo of all >/base; rm -r /home")
    runtime("commit", "base", "based")
    runtime("rm", "base")
    limited = ("run", "-d", "--network=none", "--storage-opt", "size=24m")
    runtime(*limited, "--name=beside", "based", "sh", "-c", "exec sleep 100000")
    runtime("run", "-d", "--network=none", "--name=free", "based", "sh", "-c", "exec sleep 100000")
    write = ("sh", "-c", "head -c 8m /dev/urandom >/mine; sync; md5sum /mine")
    sums = {name: runtime("exec", name, *write) for name in ("beside", "free")}
    full = runtime.call("run", "--name=full", "--network=none", "--storage-opt", "size=24m", "based", "sh", "-c", FILL)
    assert full.returncode == 0
    assert full.stdout == "of all\nkept\n"
    assert "quota exceeded" in full.stderr or "No space left" in full.stderr
    for name in ("beside", "free"):
        assert runtime("exec", name, "md5sum", "/mine") == sums[name]
        assert runtime("exec", name, "cat", "/base") == "of all\n"
        runtime("exec", name, "sh", "-c", "head -c 8m /dev/urandom >/more && sync")
    runtime("rm", "-f", "full", "beside", "free")
    assert runtime.ids() == []
    runtime("rmi", "based", IMAGE)
    assert snapshots(runtime) == {}
