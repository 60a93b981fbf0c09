"""What the kernel refuses is told with what was tried: a path and an error's text alone help nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.runtime.conftest import PATIENCE, Runtime
from tests.runtime.engine.task import dying_task

pytestmark = pytest.mark.needs("root")

# The command line with one call refused by the kernel, in its own process, or another program for its task.
_REFUSED = """
import sys
from importlib import import_module
from runtime.engine import spawn
from tests.runtime.engine.task import dying_task
where, what = sys.argv[1:3]
if where == "task":
    spawn._PROGRAM = dying_task.__file__
else:
    place, _, name = what.rpartition(".")
    module, _, inside = place.partition(":")
    owner = import_module(module)
    owner = getattr(owner, inside) if inside else owner
    assert hasattr(owner, name)
    setattr(owner, name, dying_task.refuse)
from runtime.cli import command
sys.exit(command(sys.argv[3:]))
"""

RUN = [
    ("client", "runtime.oci.sealed.seal", "start a task"),
    ("client", "runtime.engine.paths:Paths.keep_private", "use the directories {root} and {state}"),
    ("client", "drivers.catalog.open_driver", "open the storage driver vfs"),
    ("client", "runtime.engine.containers.create.unpack", "unpack the image box"),
    ("client", "runtime.engine.records.keep", "record the container"),
    ("client", "drivers.graph.snapshotter:GraphSnapshotter.prepare", "prepare its root file system"),
    ("task", "runtime.engine.task.main._listen", "make its run directory"),
    ("task", "runtime.engine.task.main.Writer", "open its log"),
    ("task", "runtime.engine.task.life.open_tree", "mount the root file system"),
    ("task", "runtime.engine.containers.accounts.lookup", "look its user up"),
    ("task", "runtime.engine.task.life.EtcFiles", "make its files of /etc"),
    ("task", "runtime.engine.task.life.pipes", "create the container"),
    ("task", "runtime.engine.networks.none:NoneNetwork.attach", "connect it to the network none"),
    ("task", "runtime.engine.task.life.keep", "record that it runs"),
]


def refused(runtime: Runtime, where: str, call: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _REFUSED, where, call, *runtime.command(*words)[3:]]
    return subprocess.run(
        command, env={**os.environ, dying_task.REFUSED: call}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=2 * PATIENCE,
    )  # fmt: skip


@pytest.mark.parametrize(("where", "call", "step"), RUN, ids=[step for _, _, step in RUN])
def test_a_step_of_run(vfs: Runtime, where: str, call: str, step: str) -> None:
    done = refused(vfs, where, call, "run", "--network=none", "box", "true")
    tried = step.format(root=vfs.root, state=vfs.state)
    said = f"cannot {tried}: /: Invalid argument"
    assert (done.returncode, done.stderr) == (125, f"runtime: {said}\n")
    # Once it is a container it stays one, and its record has the reason too.
    for name in vfs.ids():
        assert where == "task"
        shown = vfs("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", name)
        assert shown == f"created 128 {said}\n"
        vfs("rm", name)


def test_what_fails_at_the_end(vfs: Runtime) -> None:
    words = ("run", "--network=none", "--name=ends", "box", "sh", "-c", "exit 3")
    for call, step in (
        ("runtime.engine.containers.container:Container.rest", "record how it ended"),
        ("runtime.oci.container.delete", "end its processes"),
    ):
        done = refused(vfs, "task", call, *words)
        assert (done.returncode, done.stderr) == (3, f"runtime: cannot {step}: /: Invalid argument\n")
        vfs("rm", "ends")


def test_a_step_of_exec(vfs: Runtime) -> None:
    words = ("run", "-d", "--network=none", "box", "sleep", "60")
    done = refused(vfs, "task", "runtime.engine.task.joining.pipes", *words)
    name = done.stdout.strip()
    said = vfs.refused("exec", name, "true", code=125)
    assert said == "runtime: cannot start the command: /: Invalid argument\n"
    vfs("rm", "-f", name)


def test_other_verbs(vfs: Runtime) -> None:
    name = vfs("run", "-d", "--network=none", "--name=runs", "box", "sleep", "600").strip()
    try:
        for call, words, code, says in (
            ("drivers.diff.changes", ("diff", name), 1, "diff failed"),
            ("runtime.engine.containers.release.discard", ("rm", "-f", "runs"), 1, "rm runs failed"),
            ("runtime.engine.containers.store:ContainerStore._ids", ("ps",), 1, "cannot use the directories"),
        ):
            done = refused(vfs, "client", call, *words)
            assert (done.returncode, done.stderr.count("\n")) == (code, 1), done
            assert done.stderr.startswith(f"runtime: {says}") and done.stderr.endswith(": /: Invalid argument\n"), done
    finally:
        vfs("rm", "-f", name)
