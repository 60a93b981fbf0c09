"""Where the guest's packages come from: what this machine's apt is configured with, in whichever form."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.packages import Archive, Unavailable, archives

pytestmark = pytest.mark.needs("root", "program:apt-get")

Sources = Callable[[str, str], None]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Gives apt one file of sources and no others; its lists are empty, as after the machine's were deleted."""
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "lists" / "partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{parts}";\n'
        f'Dir::State::Lists "{tmp_path}/lists";\nAPT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))

    def write(name: str, text: str) -> None:
        (parts / name).write_text(text)

    return write


def mirror(path: Path, label: str) -> str:
    """A directory that apt takes for an archive, with one package; its URI."""
    architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
    packages = f"Package: some\nVersion: 1\nArchitecture: {architecture}\nFilename: some.deb\nSize: 1\n\n"
    name = f"main/binary-{architecture}/Packages"
    suite = path / "dists" / "stable"
    (suite / name).parent.mkdir(parents=True)
    (suite / name).write_text(packages)
    digest = hashlib.sha256(packages.encode()).hexdigest()
    (suite / "Release").write_text(
        f"Origin: Debian\nLabel: {label}\nSuite: stable\nCodename: stable\nArchitectures: {architecture}\n"
        f"Components: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {len(packages)} {name}\n"
    )
    return f"file:{path}/"


@pytest.fixture
def apart(tmp_path: Path) -> list[str]:
    (tmp_path / "state" / "lists" / "partial").mkdir(parents=True)
    return [f"--option=Dir::State={tmp_path}/state", f"--option=Dir::State::Lists={tmp_path}/state/lists"]


def test_the_archives_are_those_of_the_machines_apt(tmp_path: Path, sources: Sources, apart: list[str]) -> None:
    """By one line, by deb822, and whatever lies beside them; also while no list was ever fetched."""
    debian, security = mirror(tmp_path / "a", "Debian"), mirror(tmp_path / "b", "Debian-Security")
    sources("one.list", f"deb [trusted=yes] {mirror(tmp_path / 'c', 'Other')} stable main\n"
                        f"deb [trusted=yes] {debian} stable main\n")
    sources("two.sources", f"Types: deb\nURIs: {security}\nSuites: stable\nComponents: main\nTrusted: yes\n")
    found = archives(apart)
    assert (found["Debian"], found["Debian-Security"]) == (debian, security)


def test_an_archive_that_is_not_configured_is_named(tmp_path: Path, sources: Sources, apart: list[str]) -> None:
    with pytest.raises(Unavailable, match=r"with the label Debian or Debian-Security here: name a mirror"):
        Archive(str(tmp_path / "nothing"))
    sources("one.list", f"deb [trusted=yes] {mirror(tmp_path / 'a', 'Debian')} stable main\n")
    with pytest.raises(Unavailable, match=r"with the label Debian-Security here: name a mirror"):
        archives(apart)
