"""One image, pushed by another program, on every driver that works here: the same tree in the container, the same
differences, and the same layer committed of them. In a guest with zfs that is all of the drivers."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from drivers.catalog import NAMES, probe
from tests.drivers.zfs.pools import pool  # noqa: F401  (a fixture that is used by being there)
from tests.runtime.conftest import IMAGE, Runtime, deadline, installation, rootfs, rootfs_tar  # noqa: F401
from tests.runtime.containers import layers
from tests.runtime.registry.conftest import Registry, docker_registry, registry  # noqa: F401
from tests.vm.small import OPTIONS

pytestmark = pytest.mark.needs("root", "program:skopeo")

# A second layer, with all that a layer can say: what is gone, replaced, linked, owned, dated, and of other kinds.
LAYER = """
rm -r /home /bin/vi; mkdir -p /srv/a/b; echo text >/srv/a/f; ln /srv/a/f /srv/linked; ln -s a/f /srv/link
mkfifo /srv/p; chown 5:6 /srv/a/f; chmod 4711 /srv/a/f; chmod 1777 /srv/a; touch -d @7 /srv/a/f /srv/p /srv/a
rm /etc/motd; mkdir /etc/motd; echo x >/etc/motd/x; head -c 300000 /bin/busybox >/srv/big; touch -d @7 /etc/motd/x
"""
# A container's changes, on that. On overlayfs mv makes a copy, with a time to the second.
CHANGES = """
echo more >>/srv/a/f; rm /srv/linked; mv /srv/a /srv/moved; rm -r /etc/motd; echo file >/etc/motd; mkdir /srv/p2
printf x | dd of=/srv/big bs=1 seek=150000 conv=notrunc 2>/dev/null; rm /bin/ar; ln -s busybox /bin/ar2
touch -h -d @9 /srv/moved/f /srv/moved/b /srv/moved /srv/p2 /srv/big /srv /etc/motd /etc /bin/ar2 /bin /
"""
# What is mounted there is each container's own; sizes and link counts of directories are each file system's.
TREE = """
cd /; mounted="! -path ./etc/hosts ! -path ./etc/hostname ! -path ./etc/resolv.conf"
( find . -xdev -type d -exec stat -c '%n %F %a %u %g' {} +
  find . -xdev ! -type d $mounted -exec stat -c '%N %F %a %u %g %s %h %Y' {} +
  find . -xdev -type f $mounted -exec md5sum {} + ) | sort
"""


class Outcome(NamedTuple):
    tree: list[str]
    diff: list[str]
    layers: tuple[str, ...]
    committed: list[str]


@pytest.fixture(scope="module")
def image(installation: Runtime, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    runtime = installation.on("vfs")
    runtime("run", "--name=second", "--network=none", IMAGE, "sh", "-c", LAYER)
    runtime("commit", "second", "one-image")
    runtime("rm", "second")
    archive = tmp_path_factory.mktemp("one-image") / "archive.tar"
    runtime("save", "-o", archive, "one-image")
    runtime("rmi", "one-image")
    name = f"{registry.host}/one/image:1"
    copy = ["skopeo", "copy", "--dest-tls-verify=false", f"docker-archive:{archive}", f"docker://{name}"]
    done = subprocess.run(copy, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return name


def outcome(driver: str, image: str, place: Path, options: Mapping[str, str]) -> Outcome:
    runtime = Runtime(place / "root", place / "state", driver)
    words = [word for option, value in options.items() for word in ("--storage-opt", f"{option}={value}")]
    run = ("run", "--rm", "--network=none")
    tree = runtime(*words, "run", "--rm", "--network=none", image, "sh", "-c", TREE).splitlines()
    runtime("run", "--name=changed", "--network=none", image, "sh", "-c", CHANGES)
    diff = runtime("diff", "changed").splitlines()
    runtime("commit", "changed", "made")
    made = layers(runtime, "made")
    committed = runtime(*run, "made", "sh", "-c", TREE).splitlines()
    runtime("rm", "changed")
    runtime("rmi", "made", image)
    assert runtime.ids() == []
    return Outcome(tree, diff, made, committed)


@pytest.fixture(scope="module")
def plain(image: str, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """On copies of whole directories, which nothing can hide in."""
    return outcome("vfs", image, tmp_path_factory.mktemp("plain"), {})


@pytest.fixture
def more_time(deadline: None) -> None:  # noqa: F811
    """In a guest each of a dozen commands takes ten seconds."""
    signal.setitimer(signal.ITIMER_REAL, 1200, 5)


@pytest.mark.usefixtures("more_time")
@pytest.mark.parametrize("driver", [name for name in NAMES if name != "vfs"])
def test_one_image(driver: str, image: str, plain: Outcome, tmp_path: Path) -> None:
    options = OPTIONS.get(driver, {})
    found = probe(driver, str(tmp_path), options)
    if not found.works:
        pytest.skip(f"{driver}: {found.reason}")
    ours = outcome(driver, image, tmp_path, options)
    assert ours == plain


@pytest.mark.usefixtures("more_time")
def test_the_image_is_worth_it(plain: Outcome) -> None:
    assert len(plain.layers) == 3
    assert {line[0] for line in plain.diff} == {"A", "C", "D"}
    assert {"D /bin/ar", "D /srv/linked", "C /etc/motd", "A /srv/moved/f"} <= set(plain.diff)
    assert "./srv/a directory 1777 0 0" in plain.tree
    assert not [line for line in plain.tree if line.startswith(("./home", "./bin/vi "))]
