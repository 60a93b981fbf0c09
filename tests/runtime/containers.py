"""Containers of a test: started, found, killed; and what their drivers have of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess

from drivers.api import Kind
from drivers.catalog import open_driver
from runtime.engine.containers.container import Container
from runtime.engine.containers.store import ContainerStore
from runtime.engine.paths import Paths
from runtime.images.store import ImageStore
from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, wait_until

LOOP = "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done"


def start(runtime: Runtime, name: str, script: str, *options: str) -> str:
    """A container in the background whose script has got to `echo ready`; its id."""
    started = runtime("run", "-d", "--network=none", f"--name={name}", *options, IMAGE, "sh", "-c", script).strip()
    wait_until(lambda: "ready" in runtime("logs", name), "it is ready")
    return started


def found(runtime: Runtime, name: str) -> Container:
    return ContainerStore(Paths.of(str(runtime.root), str(runtime.state))).get(name)


def kill_and_wait(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], PATIENCE)
    os.close(pidfd)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def ended_by(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether it has ended; if not it gets the signal, once more where it was asked before."""
    if process.poll() is None:
        process.send_signal(number)
    return process.poll() is not None


def children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listed:
            return [int(child) for child in listed.read().split()]
    except OSError:
        return []


def layers(runtime: Runtime, reference: str) -> tuple[str, ...]:
    return ImageStore(str(runtime.root / "images")).get(reference).layers


def snapshots(runtime: Runtime) -> dict[str, Kind]:
    """Names and kinds, and nothing else is there: what is nobody's has been taken back."""
    driver = open_driver(runtime.driver, str(runtime.root / "drivers" / runtime.driver))
    try:
        driver.cleanup()
        driver.check_invariants()
        return {info.name: info.kind for info in driver.walk()}
    finally:
        driver.close()


def unfinished(runtime: Runtime, driver: str = "") -> list[str]:
    """The keys of what is not committed: containers', and what is being made."""
    name = driver or runtime.driver
    opened = open_driver(name, str(runtime.root / "drivers" / name))
    try:
        return [info.name for info in opened.walk() if info.kind is not Kind.COMMITTED]
    finally:
        opened.close()


def writable(runtime: Runtime, key: str) -> list[str]:
    """The branch that a container's snapshot is."""
    driver = open_driver(runtime.driver, str(runtime.root / "drivers" / runtime.driver))
    try:
        (mount,) = driver.mounts(key)
    finally:
        driver.close()
    branches = ",".join(mount.options).removeprefix("br=").split(":")
    return [branch.removesuffix("=rw") for branch in branches if branch.endswith("=rw")]
