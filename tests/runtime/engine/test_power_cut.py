"""The power fails at each step of a verb, and the next start finds what the disk has: each container and each image is
whole or was never promised, what was promised is there, and what is not kept leaves nothing behind."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from drivers.catalog import open_driver
from drivers.graph.layout import IDENTITY
from tests.children import in_child
from tests.pictures import Disk, mounted, store
from tests.runtime.conftest import IMAGE
from tests.stepping import CALLS, before_each_change

pytestmark = [
    pytest.mark.needs("loop", "overlay", "program:mkfs.ext4", "program:mkfs.xfs"),
    pytest.mark.skipif(not CALLS, reason="the numbers of this machine's system calls are not known here"),
]
KINDS = ["ext4", "xfs", "btrfs"]
# Every step of every verb on every file system takes minutes; FUSE_AUFS_CUTS=all does it.
EVERY = os.environ.get("FUSE_AUFS_CUTS") == "all"
SOME = 6
DRIVER = "overlay2"


class Answer(NamedTuple):
    code: int
    out: bytes
    err: str


class Installation:
    """An installation on a disk; verbs run in children that need not import anything any more."""

    def __init__(self, place: Path, state: Path) -> None:
        self.root, self.state = place / "root", state

    def words(self, *words: object) -> list[str]:
        return ["--root", str(self.root), "--state", str(self.state), "--storage-driver", DRIVER, *map(str, words)]

    def call(self, *words: object) -> Answer:
        from runtime.cli import command

        out, err = self.state.parent / "out", self.state.parent / "err"

        def child() -> None:
            for fd, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            code = command(self.words(*words))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

        code = in_child(child).wait()
        return Answer(code, out.read_bytes(), err.read_text())

    def __call__(self, *words: object) -> str:
        answer = self.call(*words)
        assert answer.code == 0, f"{words}: exit {answer.code}: {answer.err}"
        return answer.out.decode()

    def statuses(self) -> dict[str, str]:
        """STATUS by name, of all containers."""
        titles, *rows = self("ps", "-a").splitlines()
        at, end = titles.index("STATUS"), titles.index("NAMES")
        return {row[end:].strip(): row[at:end].strip() for row in rows}

    def images(self) -> set[str]:
        _, *rows = self("images").splitlines()
        return {":".join(row.split()[:2]) for row in rows}

    def file(self, container: str, path: str) -> str | None:
        """What the container has in that file, by way of its whole file system; None where it has none."""
        answer = self.call("export", container)
        assert answer.code == 0, answer.err
        with tarfile.open(fileobj=io.BytesIO(answer.out)) as archive:
            assert archive.getmember("bin/busybox").size > 100_000
            try:
                return archive.extractfile(path).read().decode()  # type: ignore[union-attr]
            except KeyError:
                return None

    def check_image(self, name: str) -> None:
        self("save", "-o", self.state.parent / "saved", name)
        with tarfile.open(self.state.parent / "saved") as archive:
            assert any(member.size > 1 << 20 for member in archive)

    def clear(self) -> None:
        """Remove all there is, and see that this was all."""
        if ids := self("ps", "-aq").split():
            self("rm", *ids)
        told = self("system", "prune", "-a", "-f")
        assert "Snapshots" not in told, told
        assert set(_listed(self.root / "containers")) <= {".lock", "names"}
        assert os.listdir(self.root / "containers/names") == []
        assert os.listdir(self.root / "images/blobs/sha256") == []
        assert not (self.root / "images/incoming").exists() or os.listdir(self.root / "images/incoming") == []
        if (self.root / "drivers" / DRIVER).exists():
            driver = open_driver(DRIVER, str(self.root / "drivers" / DRIVER))
            try:
                assert list(driver.walk()) == []
                driver.check_invariants()
            finally:
                driver.close()
            left = os.listdir(self.root / "drivers" / DRIVER / "snapshots")
            assert set(left) <= {IDENTITY}
        assert os.listdir(self.state / "containers") == []


class Cut(NamedTuple):
    """A picture, before which step it was taken, and whether the promise had been given by then."""

    image: Path
    step: str
    promised: bool


class Steps:
    """A disk with an image on it, and what becomes of verbs that the power fails in."""

    def __init__(self, kind: str, tmp_path: Path, archive: Path) -> None:
        self.every = EVERY
        self._tmp_path = tmp_path
        with ExitStack() as held:
            self.disk = Disk(held.enter_context(store(tmp_path)), kind)
            held.enter_context(self.disk.mounted())
            self._held = held.pop_all()
        self.installation = Installation(self.disk.place, tmp_path / "state")
        self.installation("import", "-c", 'CMD ["sh"]', archive, IMAGE)
        self.installation("run", "--rm", "--network=none", IMAGE, "true")  # unpacks it

    def close(self) -> None:
        self._held.close()

    def of(self, *words: object, told: Path | None = None) -> Iterator[tuple[Cut, Installation]]:
        """Run the verb to a good end, and give what is found after each cut; the last is after its end.

        What it promises is given when the file `told` appears, else with its end.
        """
        return self.of_program([sys.executable, "-m", "runtime", *self.installation.words(*words)], told=told)

    def of_program(
        self, command: Sequence[str], *, told: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Cut, Installation]]:
        """Twice: by itself, when nothing takes along to the disk what is promised, and with the file system's own
        commits before each step, which show what is half done."""
        os.sync()
        before = self.disk.picture()
        cuts = []
        for commits in (False, True):
            log = self._tmp_path / "cuts"
            status = in_child(partial(self._trace, command, env or {}, told, log, commits=commits)).wait()
            assert status == 0
            cuts += [line.split() for line in log.read_text().splitlines()]
            if not commits:
                with self.disk.away():
                    before.replace(self.disk.image)
                if told:
                    told.unlink()
        assert len(cuts) > 4
        with self.disk.away():
            for number, (path, step, promised) in enumerate(self._some(cuts)):
                found = Cut(Path(path), f"{number}-{step}", promised == "1")
                # At the same place: a container's record says where it is. What was in memory is gone.
                shutil.rmtree(self.installation.state, ignore_errors=True)
                with mounted(found.image, self.disk.place):
                    yield found, self.installation

    def _some(self, cuts: list[list[str]]) -> list[list[str]]:
        """Of pictures with commits an even choice, when there are many; the last is of the end."""
        half = [cut[1] for cut in cuts].index("end") + 1
        with_commits = cuts[half:]
        step = 1 if self.every else max(len(with_commits) // SOME, 1)
        return [*cuts[:half], *with_commits[:-1:step], with_commits[-1]]

    def _trace(
        self, command: Sequence[str], env: Mapping[str, str], told: Path | None, log: Path, *, commits: bool
    ) -> None:
        os.environ.update(env)
        seen, promised = _look(self.disk.place), False

        def take(step: str) -> None:
            lines.write(f"{self.disk.picture()} {step} {int(promised)}\n")

        def cut(step: str) -> None:
            nonlocal seen, promised
            if told and told.exists() and not promised:
                promised = True
                take(step)
            if commits and (now := _look(self.disk.place)) != seen:
                seen = now
                self.disk.commit_names()
                take(step)

        with open(log, "w", encoding="utf-8") as lines:
            take("begin")
            code = before_each_change(command, cut)
            promised = True
            take("end")
        assert code == 0, code


def _listed(directory: Path) -> list[str]:
    walked = ((place, name) for place, directories, files in os.walk(directory) for name in directories + files)
    return [os.path.relpath(os.path.join(place, name), directory) for place, name in walked]


def _look(place: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all records; of drivers, whose steps have tests of their own, only which layers there
    are."""
    found = []
    for directory, directories, names in os.walk(place / "root"):
        if directory.endswith(("/snapshots", "/unpack")):
            directories.clear()
        elif "/drivers/" in directory:
            names.clear()
        for name in [*names, *directories]:
            try:
                status = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            found.append((os.path.join(directory, name), status.st_size, status.st_mtime_ns))
    return sorted(found)


@pytest.fixture
def steps(request: pytest.FixtureRequest, tmp_path: Path, rootfs_tar: Path, deadline: None) -> Iterator[Steps]:
    made = Steps(getattr(request, "param", "ext4"), tmp_path, rootfs_tar)
    try:
        yield made
    finally:
        made.close()


on_each = pytest.mark.parametrize("steps", KINDS, indirect=True)
on_some = pytest.mark.parametrize("steps", KINDS if EVERY else KINDS[:1], indirect=True)


WORK = "echo precious | dd of=/data conv=fsync 2>/dev/null; : >/told/done"


@on_each
def test_run(steps: Steps, tmp_path: Path) -> None:
    """What a container has synced is there, and so is the container, under its name."""
    told = tmp_path / "told"
    told.mkdir()
    listed = set()
    words = ("run", "--network=none", "--name=work", f"-v{told}:/told", IMAGE, "sh", "-c", WORK)
    steps.every |= steps.disk.kind == "ext4"
    for cut, found in steps.of(*words, told=told / "done"):
        statuses = found.statuses()
        assert set(statuses) <= {"work"}, cut
        if cut.promised:
            assert statuses["work"].startswith("Exited"), cut
        if "work" in statuses:
            assert statuses["work"].startswith("Exited"), (cut, statuses)
            data = found.file("work", "data")
            assert data == "precious\n" or not cut.promised, cut
        listed.add("work" in statuses)
        if cut.step.endswith("end"):
            assert statuses["work"].startswith("Exited (0)")
        found.clear()
    assert listed == {True, False}
    steps.installation("rm", "work")


@on_some
def test_run_of_one_that_removes_itself(steps: Steps) -> None:
    for _, found in steps.of("run", "--rm", "--network=none", IMAGE, "true"):
        assert found.statuses() == {}
        found.clear()


@on_some
def test_rm(steps: Steps) -> None:
    """It is there whole, or gone."""
    steps.installation("run", "--network=none", "--name=work", IMAGE, "sh", "-c", "echo precious >/data; sync")
    listed = set()
    for cut, found in steps.of("rm", "work"):
        statuses = found.statuses()
        if cut.promised:
            assert statuses == {}
        if statuses:
            assert statuses["work"].startswith("Exited (0)"), cut
            assert found.file("work", "data") == "precious\n"
        listed.add(len(statuses))
        found.clear()
    assert listed == {0, 1}


@on_some
def test_commit(steps: Steps) -> None:
    steps.installation("run", "--network=none", "--name=work", IMAGE, "sh", "-c", "echo precious >/data")
    seen = set()
    for cut, found in steps.of("commit", "work", "made"):
        images = found.images()
        assert images - {"made:latest"} == {f"{IMAGE}:latest"}, cut
        assert "made:latest" in images or not cut.promised, cut
        for image in images:
            found.check_image(image)
        assert found.statuses()["work"].startswith("Exited (0)")
        seen.add(len(images))
        found.clear()
    assert seen == {1, 2}
    steps.installation("rm", "work")


@on_some
@pytest.mark.parametrize("verb", ["tag", "rmi"])
def test_names_of_images(steps: Steps, verb: str) -> None:
    if verb == "rmi":
        steps.installation("tag", IMAGE, "second")
    seen = set()
    for cut, found in steps.of(*(("tag", IMAGE, "second") if verb == "tag" else ("rmi", "second"))):
        images = found.images()
        assert f"{IMAGE}:latest" in images
        if cut.promised:
            assert ("second:latest" in images) == (verb == "tag")
        for image in images:
            found.check_image(image)
        seen.add(len(images))
        found.clear()
    assert seen == {1, 2}


@on_some
def test_rmi_of_the_last_name(steps: Steps) -> None:
    steps.installation("run", "--rm", "--network=none", IMAGE, "true")
    seen = set()
    for cut, found in steps.of("rmi", IMAGE):
        images = found.images()
        assert not images or not cut.promised
        for image in images:
            found.check_image(image)
        seen.add(len(images))
        found.clear()
    assert seen == {0, 1}


@on_some
def test_the_first_import(steps: Steps, rootfs_tar: Path) -> None:
    shutil.rmtree(steps.installation.root)
    seen = set()
    for cut, found in steps.of("import", rootfs_tar, IMAGE):
        images = found.images()
        assert images or not cut.promised
        for image in images:
            found.check_image(image)
        seen.add(len(images))
        found.clear()
    assert seen == {0, 1}


@on_some
def test_networks(steps: Steps) -> None:
    """Leases are of running containers, of which a cut leaves none: the next gets an address whatever was lost."""
    for number, (_, found) in enumerate(steps.of("run", "--rm", "--network=bridge", IMAGE, "true")):
        if (found.root / "network").exists() and number % 3 == 0:
            shown = found("run", "--rm", "--network=bridge", IMAGE, "ip", "-4", "-o", "addr", "show", "dev", "eth0")
            assert "172.30.0." in shown
        found.clear()


@on_some
def test_login(steps: Steps) -> None:
    """Kept in a directory that is made for it. What was there before is there, or with it what is new."""
    from runtime.registry.credentials import Credentials, Login

    keep = (
        "import os, sys; from runtime.registry.credentials import *; "
        "Credentials(os.environ).keep(sys.argv[1], Login(sys.argv[1], 'secret'))"
    )
    home = steps.disk.place / "root/home"
    seen: set[int] = set()
    for registry in ("first", "second"):
        for cut, found in steps.of_program(
            [sys.executable, "-c", keep, registry], env={"FUSE_AUFS_CONFIG": str(home), "PYTHONPATH": os.getcwd()}
        ):
            kept = Credentials({"FUSE_AUFS_CONFIG": str(found.root / "home"), "HOME": "/nowhere"})
            logins = [name for name in ("first", "second") if kept.find(name) == Login(name, "secret")]
            assert logins in (["first", "second"][: len(logins)],)
            if cut.promised:
                assert registry in logins
            if registry == "second":
                assert "first" in logins
            seen.add(len(logins))
    assert seen == {0, 1, 2}
