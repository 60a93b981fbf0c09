"""Debian packages of other suites than this machine's, unpacked into a directory and not installed.

apt is given lists and sources of its own (apt.conf(5), Dir::State and Dir::Etc); all else of its configuration, proxies
above all, is the machine's, and so is the mirror.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SUITES = (("Debian", "bookworm-backports", "main contrib"), ("Debian-Security", "bookworm-security", "main"))
_DEFAULT = {"Debian": "http://deb.debian.org/debian/", "Debian-Security": "http://deb.debian.org/debian-security/"}


class Unavailable(Exception):
    """There is no guest to be had here; the text is a sentence that says why."""


class Archive:
    """The packages of bookworm-backports and bookworm-security; apt's state is kept in `directory`."""

    def __init__(self, directory: str) -> None:
        for part in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(directory, part), exist_ok=True)
        sources = os.path.join(directory, "suites.sources")
        mirrors = _DEFAULT | _mirrors()
        with open(sources, "w", encoding="utf-8") as file:
            for label, suite, components in _SUITES:
                file.write(f"Types: deb\nURIs: {mirrors[label]}\nSuites: {suite}\nComponents: {components}\n"
                           f"Signed-By: {_KEYS}\n\n")
        self._options = [
            f"--option=Dir::State={directory}",
            f"--option=Dir::Cache={directory}",
            f"--option=Dir::Etc::SourceList={sources}",
            "--option=Dir::Etc::SourceParts=/dev/null",
            "--option=Dir::State::status=/var/lib/dpkg/status",
            "--option=Acquire::Retries=3",
            "--option=APT::Sandbox::User=root",  # the directory need not be one that the user _apt can write to
        ]
        run(["apt-get", *self._options, "--quiet=2", "--error-on=any", "update"], directory)

    def dependency(self, package: str) -> str:
        """What a package that only names another one depends on: linux-image-6.12-amd64 gives the newest kernel."""
        shown = run(["apt-cache", *self._options, "show", "--no-all-versions", package], "/")
        fields = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line and line[0] != " ")
        if "Depends" not in fields:
            raise Unavailable(f"the Debian archive has no package {package}")
        return fields["Depends"].split(",")[0].split()[0]

    def unpack(self, packages: Sequence[str], target: str) -> None:
        """Download `packages` and unpack them below `target`, which is made if missing."""
        downloads = os.path.join(target + ".packages")
        os.makedirs(downloads, exist_ok=True)
        run(["apt-get", *self._options, "--quiet=2", "download", *packages], downloads)
        for name in sorted(os.listdir(downloads)):
            run(["dpkg-deb", "--extract", os.path.join(downloads, name), target], downloads)
            os.unlink(os.path.join(downloads, name))
        os.rmdir(downloads)


def _mirrors() -> dict[str, str]:
    """Where this machine gets Debian and its security updates from, by the label of the archive."""
    try:
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format=$(LABEL) $(REPO_URI)", "Created-By: Packages"],
            capture_output=True, text=True, check=False,
        ).stdout
    except OSError:
        return {}
    return {label: uri for label, _, uri in (line.partition(" ") for line in listed.splitlines()) if label in _DEFAULT}


def run(command: Sequence[str], directory: str) -> str:
    """What `command` writes, run in `directory`. Raises Unavailable with its last line when it fails."""
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed, and making the guest's kernel takes it") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{' '.join(command[:1])} failed: {said[-1] if said else 'it does not say why'}")
    return done.stdout
