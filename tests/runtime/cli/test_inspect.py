"""`inspect`: what docker's API has a name for and this runtime knows, under that name and in that form."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import Runtime, wait_until

pytestmark = pytest.mark.needs("root")

_CHANGES = (
    'ENTRYPOINT ["sh", "-c"]', 'CMD ["exit 3"]', "ENV A=1", "LABEL org.example.kind=test", "EXPOSE 80/tcp",
    'VOLUME ["/data"]', "STOPSIGNAL SIGRTMIN+3", "USER app", "WORKDIR /home/app",
)  # fmt: skip


@pytest.fixture(scope="module")
def declared(installation: Runtime, rootfs_tar: Path) -> Iterator[str]:
    installation("import", *(word for change in _CHANGES for word in ("-c", change)), rootfs_tar, "declared")
    yield "declared"
    installation("rmi", "declared")


def inspect(runtime: Runtime, name: str) -> dict[str, Any]:
    (found,) = json.loads(runtime("inspect", "--type=container", name))
    assert isinstance(found, dict)
    return found


def ended(runtime: Runtime, *words: str) -> dict[str, Any]:
    """A container that has run, as it is told."""
    runtime.call("run", "--name=seen", "--network=none", *words)
    try:
        return inspect(runtime, "seen")
    finally:
        runtime("rm", "seen")


def test_what_the_image_declares(runtime: Runtime, declared: str) -> None:
    found = ended(runtime, declared)
    config = found["Config"]
    assert (config["Entrypoint"], config["Cmd"]) == (["sh", "-c"], ["exit 3"])
    assert (found["Path"], found["Args"], found["State"]["ExitCode"]) == ("sh", ["-c", "exit 3"], 3)
    assert config["Labels"] == {"org.example.kind": "test"}
    assert config["ExposedPorts"] == {"80/tcp": {}} and config["Volumes"] == {"/data": {}}
    assert config["StopSignal"] == "SIGRTMIN+3"
    assert (config["User"], config["WorkingDir"], config["Image"]) == ("app", "/home/app", "declared")
    assert "A=1" in config["Env"]
    image = json.loads(runtime("inspect", "--type=image", declared))[0]["Config"]
    assert {key: config[key] for key in ("Labels", "ExposedPorts", "Volumes")} == {
        key: image[key] for key in ("Labels", "ExposedPorts", "Volumes")
    }


def test_what_is_not_said(runtime: Runtime) -> None:
    found = ended(runtime, "box", "true")
    config, host = found["Config"], found["HostConfig"]
    assert (config["Entrypoint"], config["Cmd"], config["Labels"]) == (None, ["true"], {})
    assert config["StopSignal"] == "SIGTERM" and "ExposedPorts" not in config and config["Volumes"] is None
    assert found["Mounts"] == [] and host["Binds"] is None
    assert host["Memory"] == host["MemorySwap"] == host["NanoCpus"] == 0 and host["PidsLimit"] is None
    assert host["StorageOpt"] is None and host["ShmSize"] == 64 << 20
    assert host["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert found["State"]["OOMKilled"] is False
    assert found["NetworkSettings"]["Networks"] == {
        "none": {"MacAddress": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0}
    }


def test_the_environment_is_what_was_said(runtime: Runtime) -> None:
    """And not what every container is given besides, of which `docker inspect` says nothing."""
    names = [entry.partition("=")[0] for entry in ended(runtime, "-t", "-h", "here", "box", "true")["Config"]["Env"]]
    assert "PATH" in names and not {"HOSTNAME", "TERM"} & {*names}
    said = ("-e", "HOSTNAME=other", "-e", "TERM=vt100")
    assert {"HOSTNAME=other", "TERM=vt100"} <= {*ended(runtime, "-t", *said, "box", "true")["Config"]["Env"]}


def test_one_that_runs(runtime: Runtime, tmp_path: Path) -> None:
    limits = ("-m", "32m", "--cpus", "0.5", "--pids-limit", "9")
    volumes = ("-v", f"{tmp_path}:/v:ro", "-v", f"{tmp_path}:/dev/shm")
    name = runtime("run", "-d", "--name=seen", "-h", "here", *limits, *volumes, "box", "sleep", "600").strip()
    try:
        found = inspect(runtime, "seen")
        address = runtime("exec", name, "ip", "-o", "addr", "show", "eth0")
        link = runtime("exec", name, "cat", "/sys/class/net/eth0/address").strip()
        route = runtime("exec", name, "ip", "route", "show", "default").split()
        pid = runtime.pid("seen")
    finally:
        runtime("stop", "-t", "0", name)
    host, network = found["HostConfig"], found["NetworkSettings"]
    state = {key: found["State"][key] for key in ("Status", "Running", "Paused", "Restarting", "Dead", "Pid")}
    assert state == {
        "Status": "running", "Running": True, "Paused": False, "Restarting": False, "Dead": False, "Pid": pid
    }  # fmt: skip
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (
        32 << 20, 64 << 20, 500_000_000, 9
    )  # fmt: skip
    assert host["CpuQuota"] == host["CpuPeriod"] == 0  # as docker has it of --cpus
    assert host["Binds"] == [f"{tmp_path}:/v:ro", f"{tmp_path}:/dev/shm"] and host["ShmSize"] == 0
    assert [(mount["Destination"], mount["Mode"], mount["RW"]) for mount in found["Mounts"]] == [
        ("/v", "ro", False), ("/dev/shm", "", True)
    ]  # fmt: skip
    assert found["Config"]["Hostname"] == "here" and found["Platform"] == "linux" and found["RestartCount"] == 0
    assert f"inet {network['IPAddress']}/{network['IPPrefixLen']} " in address
    assert network["MacAddress"] == link and network["Gateway"] == route[2]
    assert network["Networks"]["bridge"] == {key: network[key] for key in network["Networks"]["bridge"]}
    after = inspect(runtime, "seen")["NetworkSettings"]
    runtime("rm", "seen")
    assert after["IPAddress"] == after["Networks"]["bridge"]["IPAddress"] == ""


_EATS = "dd if=/dev/zero of=/dev/null bs=64M count=1"


def test_what_ran_out_of_memory(runtime: Runtime) -> None:
    """Also where not the first process did, which goes on and ends as it likes."""
    state = ended(runtime, "-m", "16m", "box", "sh", "-c", f"exec {_EATS}")["State"]
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)
    state = ended(runtime, "-m", "16m", "box", "sh", "-c", f"{_EATS}; exit 4")["State"]
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 4)


def test_what_ran_out_of_memory_and_lost_its_task(runtime: Runtime) -> None:
    from runtime.engine.containers.store import ContainerStore
    from runtime.engine.paths import Paths

    name = runtime("run", "-d", "-m", "16m", "--network=none", "box", "sh", "-c", f"{_EATS}; sleep 600").strip()
    try:
        wait_until(lambda: "sleep 600" in runtime("exec", name, "ps"), "its first program was killed")
        task = ContainerStore(Paths.of(str(runtime.root), str(runtime.state))).get(name).state().task_pid
        os.kill(task, signal.SIGKILL)
        wait_until(lambda: not inspect(runtime, name)["State"]["Running"], "it is recovered")
        assert inspect(runtime, name)["State"]["OOMKilled"] is True
    finally:
        runtime("rm", "-f", name)
