"""Debian packages of other suites than this machine's, unpacked into a directory and not installed.

apt is given lists and sources of its own (apt.conf(5), Dir::State and Dir::Etc); all else of its configuration, proxies
above all, is the machine's. So is where the packages come from: the archives that the machine's apt is configured with.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# An archive by the label that its Release files have, which is the same on every mirror.
_SUITES = (("Debian", "bookworm-backports", "main contrib"), ("Debian-Security", "bookworm-security", "main"))


class Unavailable(Exception):
    """There is no guest to be had here; the text is a sentence that says why."""


class Archive:
    """The packages of bookworm-backports and bookworm-security; apt's state is kept in `directory`."""

    def __init__(self, directory: str) -> None:
        for part in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(directory, part), exist_ok=True)
        apart = [
            f"--option=Dir::State={directory}",
            f"--option=Dir::Cache={directory}",
            "--option=Dir::State::status=/var/lib/dpkg/status",
            "--option=Acquire::Retries=3",
            "--option=APT::Sandbox::User=root",  # the directory need not be one that the user _apt can write to
        ]
        sources = os.path.join(directory, "suites.sources")
        found = archives(apart)
        with open(sources, "w", encoding="utf-8") as file:
            for label, suite, components in _SUITES:
                file.write(f"Types: deb\nURIs: {found[label]}\nSuites: {suite}\nComponents: {components}\n"
                           f"Signed-By: {_KEYS}\n\n")
        self._options = [*apart, f"--option=Dir::Etc::SourceList={sources}", "--option=Dir::Etc::SourceParts=/dev/null"]
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


def archives(apart: Sequence[str]) -> dict[str, str]:
    """The URIs that this machine's apt gets Debian and its security updates from, by the label of the archive.

    A label is known where the lists were once fetched. Where they were not, as in an image that was made small, they
    are fetched with `apart`, options that keep them away from the machine's. Raises Unavailable.
    """
    labels = [label for label, _, _ in _SUITES]
    found = _listed([])
    if not found.keys() >= set(labels):
        run(["apt-get", *apart, "--quiet=2", "update"], "/")
        found = _listed(apart) | found
    if missing := [label for label in labels if label not in found]:
        raise Unavailable(
            f"apt gets nothing from an archive with the label {' or '.join(missing)} here: name a mirror of Debian and "
            "of its security updates in /etc/apt/sources.list.d (sources.list(5))"
        )
    return found


def _listed(options: Sequence[str]) -> dict[str, str]:
    shown = run(["apt-get", *options, "indextargets", "--format=$(LABEL)\t$(REPO_URI)", "Created-By: Packages"], "/")
    found: dict[str, str] = {}
    for line in shown.splitlines():
        label, _, uri = line.partition("\t")
        found.setdefault(label, uri)
    return found


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
