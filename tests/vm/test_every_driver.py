"""`runtime run` on every driver that works here, of an image that it pulls; in a guest with zfs that is all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.catalog import NAMES, probe
from tests.drivers.zfs.pools import pool  # noqa: F401  (a fixture that is used by being there)
from tests.runtime.conftest import IMAGE, Runtime, deadline, installation, rootfs, rootfs_tar  # noqa: F401
from tests.runtime.registry.conftest import Registry, docker_registry, registry  # noqa: F401
from tests.vm.small import OPTIONS


@pytest.fixture(scope="module")
def image(installation: Runtime, registry: Registry) -> str:  # noqa: F811
    """What a real registry has."""
    name = f"{registry.host}/box:1"
    installation("tag", IMAGE, name)
    installation("push", name)
    return name


@pytest.mark.needs("root")
@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("name", NAMES)
def test_containers_run(name: str, image: str, tmp_path: Path) -> None:
    options = OPTIONS.get(name, {})
    found = probe(name, str(tmp_path), options)
    if not found.works:
        pytest.skip(f"{name}: {found.reason}")
    runtime = Runtime(tmp_path / "root", tmp_path / "state", name)
    words = [word for option, value in options.items() for word in ("--storage-opt", f"{option}={value}")]

    def run(*command: str) -> str:
        return runtime(*words, "run", *command)

    change = "echo changed >/etc/motd; rm /bin/vi; mkdir /new; echo new >/new/file; cat /etc/motd /new/file; ls /bin/vi"
    shown = runtime.call(*words, "run", "--name=kept", "--network=none", image, "sh", "-c", change)
    assert (shown.stdout, shown.returncode) == ("changed\nnew\n", 1), shown.stderr
    assert "Status: Downloaded newer image" in shown.stderr
    look = "cat /etc/motd; ls /bin/vi; ls -d /new || echo none"
    assert run("--rm", "--network=none", image, "sh", "-c", f"{look} 2>/dev/null") == (
        "hello from the image\n/bin/vi\nnone\n"
    )
    assert runtime("rm", "kept") == "kept\n"
    runtime("rmi", image)
    assert runtime.ids() == []
