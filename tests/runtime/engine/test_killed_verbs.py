"""kill -9 of every verb, at moments all over its work: the image, the containers beside it and their data are as they
were, the verb can be done again, and nothing is left.

KILL_ROUNDS=30 kills each verb on each driver so often (scripts/nightly); else some once, each on one of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import drivers
from drivers.api import Kind
from tests.capabilities import missing
from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, wait_until
from tests.runtime.containers import LOOP, snapshots, start

ROUNDS = int(os.environ.get("KILL_ROUNDS", "0"))
DRIVERS = {"fuse-aufs": "fuse", "overlay2": "overlay", "vfs": "root"}

# Ends as `runtime` does, or by SIGKILL at its n-th call of a function of ours; writes how many there were.
_DIE_AT_CALL = """
import os, signal, sys
where, last, counted = sys.argv[1], int(sys.argv[2]), sys.argv[3]
packages = tuple(os.path.join(where, name) for name in ("runtime", "drivers", "unionfs"))
me, calls = os.getpid(), 0
def profile(frame, event, argument):
    global calls
    if event == "call" and frame.f_code.co_filename.startswith(packages) and os.getpid() == me:
        calls += 1
        if calls == last:
            os.kill(me, signal.SIGKILL)
sys.setprofile(profile)
from runtime.cli import command
code = command(sys.argv[4:])
sys.setprofile(None)
if os.getpid() == me:
    open(counted, "w").write(str(calls))
os._exit(code)
"""
HOME = os.path.dirname(os.path.dirname(os.path.abspath(drivers.__file__)))


class Site(NamedTuple):
    """An installation with a container that has nothing to do with what is killed, and a second image's archives."""

    runtime: Runtime
    place: Path

    def die_at(self, call: int, words: tuple[str, ...]) -> int:
        """Run the verb, killed at that call of it, 0 for none; how many it made then, 0 if it was killed."""
        counted = self.place / "counted"
        counted.unlink(missing_ok=True)
        command = [sys.executable, "-c", _DIE_AT_CALL, HOME, str(call), str(counted), *self.runtime.command(*words)[3:]]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
        if done.returncode == -signal.SIGKILL:
            return 0
        assert done.returncode == 0, done.stderr
        return int(counted.read_text())

    def is_there(self, image: str) -> bool:
        return f"{image} " in self.runtime("images")

    def forget(self, image: str) -> None:
        if self.is_there(image):
            self.runtime("rmi", image)

    def remove(self, name: str) -> None:
        done = self.runtime.call("rm", "-f", name)
        assert done.returncode == 0 or "No such container" in done.stderr, done.stderr

    def has_image(self) -> None:
        """It is there whole, after it was made again if need be; then it is gone."""
        if not self.is_there("second"):
            self.runtime("load", "-q", "-i", str(self.place / "second.tar"))
        assert self.runtime.run("second", "cat", "/second") == "second\n"
        self.runtime("rmi", "second")


class Verb(NamedTuple):
    """What is there before, the words, and what must be so after them, done or killed; it takes all of it away."""

    prepare: Callable[[Site], object]
    words: Callable[[Site], tuple[str, ...]]
    check: Callable[[Site], object]


def running(site: Site) -> None:
    start(site.runtime, "victim", f"echo changed >/etc/motd; rm /bin/vi; {LOOP}")


def ended(site: Site) -> None:
    site.runtime("run", "--name=victim", "--network=none", IMAGE, "sh", "-c", "echo changed >/etc/motd; rm /bin/vi")


def imported(site: Site) -> None:
    site.runtime("load", "-q", "-i", str(site.place / "second.tar"))
    site.runtime.run("second", "true")  # it has a layer of the driver's now


CHANGED = ["C /bin", "D /bin/vi", "C /etc", "C /etc/motd"]


def has_its_changes(site: Site) -> None:
    assert site.runtime("diff", "victim").splitlines() == CHANGED
    site.remove("victim")


def has_gone(site: Site) -> None:
    """As it was told to at its end, whoever sees to that: its task, or the next command if it came to none."""
    wait_until(lambda: "victim" not in site.runtime("ps", "-a"), "it has gone")
    assert site.runtime.run("--name=victim", IMAGE, "echo", "free") == "free\n"


def is_free(site: Site) -> None:
    """It is there whole, or it is not there; and its name is free when it is removed."""
    if "victim" in site.runtime("ps", "-a"):
        assert site.runtime.status("victim").startswith(("Up", "Exited"))
    site.remove("victim")
    assert site.runtime.run("--name=victim", IMAGE, "echo", "free") == "free\n"


def has_stopped(site: Site) -> None:
    assert site.runtime("stop", "-t", "0", "victim") == "victim\n"
    assert site.runtime.status("victim").startswith("Exited (")
    has_its_changes(site)


def runs_on(site: Site) -> None:
    assert site.runtime("exec", "victim", "cat", "/etc/motd") == "changed\n"
    has_its_changes(site)


def was_committed(site: Site) -> None:
    if not site.is_there("made"):
        site.runtime("commit", "victim", "made")
    assert site.runtime.run("made", "cat", "/etc/motd") == "changed\n"
    site.forget("made")
    has_its_changes(site)


def was_exported(site: Site) -> None:
    site.runtime("export", "-o", str(site.place / "again.tar"), "victim")
    with tarfile.open(site.place / "again.tar") as archive:
        assert archive.extractfile("etc/motd").read() == b"changed\n"  # type: ignore[union-attr]
        assert "bin/vi" not in archive.getnames()
    has_its_changes(site)


def was_saved(site: Site) -> None:
    site.runtime("save", "-o", str(site.place / "again.tar"), IMAGE)
    assert (site.place / "again.tar").read_bytes() == (site.place / "box.tar").read_bytes()


def nothing(site: Site) -> None:
    pass


VERBS = {
    "run": Verb(nothing, lambda site: ("run", "--rm", "--name=victim", "--network=none", IMAGE, "true"), has_gone),
    "run -d": Verb(nothing, lambda site: ("run", "-d", "--name=victim", IMAGE, "sleep", "9"), is_free),
    "exec": Verb(running, lambda site: ("exec", "victim", "true"), runs_on),
    "stop": Verb(running, lambda site: ("stop", "-t", "1", "victim"), has_stopped),
    "rm": Verb(ended, lambda site: ("rm", "victim"), is_free),
    "rm -f": Verb(running, lambda site: ("rm", "-f", "victim"), is_free),
    "container prune": Verb(ended, lambda site: ("container", "prune", "-f"), is_free),
    "diff": Verb(ended, lambda site: ("diff", "victim"), has_its_changes),
    "commit": Verb(running, lambda site: ("commit", "victim", "made"), was_committed),
    "export": Verb(ended, lambda site: ("export", "-o", str(site.place / "killed.tar"), "victim"), was_exported),
    "import": Verb(nothing, lambda site: ("import", str(site.place / "layer.tar"), "second"), Site.has_image),
    "load": Verb(nothing, lambda site: ("load", "-q", "-i", str(site.place / "second.tar")), Site.has_image),
    "save": Verb(nothing, lambda site: ("save", "-o", str(site.place / "killed.tar"), IMAGE), was_saved),
    "rmi": Verb(imported, lambda site: ("rmi", "second"), Site.has_image),
}


# Once each in the suite, early or late in their work; where in it, as a fraction.
FEW = {"run": 0.5, "exec": 0.7, "stop": 0.4, "rm -f": 0.8, "commit": 0.6, "export": 0.9, "load": 0.85, "rmi": 0.5}


def chosen() -> list[tuple[str, str]]:
    """(verb, driver): each verb on each driver, or by turns on one of them."""
    names = list(DRIVERS)
    if ROUNDS:
        return [(verb, driver) for verb in VERBS for driver in names]
    return [(verb, names[number % len(names)]) for number, verb in enumerate(FEW)]


@pytest.fixture(scope="module")
def installed(rootfs: Path, rootfs_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    place = tmp_path_factory.mktemp("killed")
    runtime = Runtime(place / "root", place / "state", "vfs")
    with tarfile.open(place / "layer.tar", "w") as archive:
        (place / "second").write_text("second\n")
        archive.add(rootfs / "bin", "bin")
        archive.add(place / "second", "second")
    runtime("import", rootfs_tar, IMAGE)
    runtime("import", str(place / "layer.tar"), "second")
    runtime("save", "-o", str(place / "second.tar"), "second")
    runtime("save", "-o", str(place / "box.tar"), IMAGE)
    runtime("rmi", "second")
    return Site(runtime, place)


@pytest.fixture(scope="module")
def neighbours(installed: Site) -> Iterator[dict[str, str]]:
    """A container on each driver that works here, with its id: there for all tests, and untouched by any."""
    ids = {}
    for driver in DRIVERS:
        if not missing(DRIVERS[driver]):
            script = "echo its own >/own; echo ready; exec sleep 100000"
            ids[driver] = start(installed.runtime.on(driver), f"beside-{driver}", script)
    yield ids
    for driver, container in ids.items():
        runtime = installed.runtime.on(driver)
        assert runtime("exec", container, "cat", "/own", "/etc/motd") == "its own\nhello from the image\n"
        runtime("rm", "-f", container)
        assert set(snapshots(runtime).values()) <= {Kind.COMMITTED}


@pytest.fixture
def more_time(deadline: None) -> None:
    """The more rounds, the later a test hangs."""
    signal.setitimer(signal.ITIMER_REAL, 5 * PATIENCE * (1 + ROUNDS / 3), 5)


@pytest.mark.parametrize("what", chosen(), ids=" on ".join)
def test_killed_anywhere(
    installed: Site, neighbours: dict[str, str], more_time: None, what: tuple[str, str]
) -> None:
    verb, driver = what
    if reason := missing(DRIVERS[driver]):
        pytest.skip(reason)
    site = Site(installed.runtime.on(driver), installed.place)
    prepare, words, check = VERBS[verb]
    prepare(site)
    calls = site.die_at(0, words(site))
    check(site)
    assert calls > 50, "its calls were not seen"
    for moment in [(number + 0.5) / ROUNDS for number in range(ROUNDS)] or [FEW[verb]]:
        prepare(site)
        site.die_at(round(calls * moment), words(site))
        check(site)
    assert site.runtime("exec", neighbours[driver], "cat", "/own") == "its own\n"
    assert set(site.runtime.ids()) == set(neighbours.values())
    assert site.runtime("images", "-q").count("\n") == 1
