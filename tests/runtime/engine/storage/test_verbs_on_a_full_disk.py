"""Verbs on a disk that a container has filled to its last byte: those that only look work, and those that remove make
room by themselves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pictures import Disk, mounted, store
from tests.runtime.conftest import IMAGE, Runtime, wait_until
from tests.runtime.containers import unfinished

pytestmark = [
    pytest.mark.needs("loop", "overlay", "program:mkfs.ext4", "program:mkfs.xfs", "program:mkfs.btrfs"),
    pytest.mark.usefixtures("deadline"),
]

FILL = (
    "for size in 1M 4k 512; do dd if=/dev/zero of=/log$size bs=$size 2>/dev/null; done; "
    "mkdir /d; n=0; while true 2>/dev/null >/d/$n; do n=$((n+1)); test $n = 3000 && break; done; "
    ": >/told/full; sleep 600"
)


class Full:
    """A full disk with a container that runs, and an image that no container is made of."""

    def __init__(self, found: Disk, runtime: Runtime) -> None:
        self.disk, self.runtime = found, runtime

    def after_a_reboot(self) -> Iterator[Runtime]:
        """The installation as the next start finds it, as often as it is asked for, with what follows undone."""
        shutil.rmtree(self.runtime.state, ignore_errors=True)
        picture = self.disk.picture()
        with mounted(picture, self.disk.place):
            yield self.runtime
        shutil.rmtree(self.runtime.state, ignore_errors=True)
        picture.unlink()


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def full(request: pytest.FixtureRequest, tmp_path: Path, rootfs_tar: Path) -> Iterator[Full]:
    told = tmp_path / "told"
    told.mkdir()
    with store(tmp_path) as pool, (found := Disk(pool, request.param)).mounted():
        runtime = Runtime(found.place / "root", tmp_path / "state", "overlay2")
        runtime("import", rootfs_tar, IMAGE)
        runtime("run", "--name=work", "--network=none", IMAGE, "sh", "-c", "head -c 2000000 /dev/urandom >/more")
        runtime("commit", "work", "second")
        runtime("rm", "work")
        assert runtime.run("second", "echo", "unpacked") == "unpacked\n"
        runtime("run", "-d", "--name=full", "--network=none", f"-v{told}:/told", IMAGE, "sh", "-c", FILL)
        wait_until((told / "full").exists, "the disk is full")
        try:
            yield Full(found, runtime)
        finally:
            if (runtime.root / "containers").exists():
                runtime.call("rm", "-f", "full")


def test_every_verb(full: Full) -> None:
    runtime = full.runtime
    assert runtime.status("full").startswith("Up ")
    assert runtime("stop", "-t0", "full") == "full\n"
    assert runtime.status("full").startswith("Exited (137)")
    assert runtime("images").count("\n") == 3
    with full.disk.away():
        for words in (("rm", "full"), ("rmi", "second"), ("container", "prune", "-f"), ("system", "prune", "-af")):
            for rebooted in full.after_a_reboot():
                assert rebooted.status("full").startswith("Exited ("), words
                rebooted(*words)  # first: to open a driver may give up what it keeps for this
                rebooted("system", "df")
                if "second" in words:
                    assert rebooted("images").count("\n") == 2
                    rebooted("rm", "full")
                assert rebooted.ids() == []
                assert unfinished(rebooted) == []
                if "-af" in words:
                    assert rebooted("images").count("\n") == 1
                else:
                    assert rebooted.run(IMAGE, "echo", "works") == "works\n"
    assert runtime("rm", "full") == "full\n"
    assert runtime.run(IMAGE, "echo", "works") == "works\n"


def test_rm_of_one_that_runs(full: Full) -> None:
    assert full.runtime("rm", "-f", "full") == "full\n"
    assert full.runtime.ids() == []
    assert full.runtime.run(IMAGE, "echo", "works") == "works\n"
