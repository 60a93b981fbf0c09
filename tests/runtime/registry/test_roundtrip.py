"""Images to and from a real registry by the command line, in docker's words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.runtime.conftest import Runtime
from tests.runtime.registry.conftest import Registry

_DIGEST = r"sha256:[0-9a-f]{64}"


def test_push_and_pull(
    new_runtime: Callable[[], Runtime], registry: Registry, rootfs_tar: Path
) -> None:
    name = f"{registry.host}/roundtrip/box:1"
    one, other = new_runtime(), new_runtime()
    one("import", "-c", 'CMD ["cat", "/etc/motd"]', rootfs_tar, name)
    pushed = one("push", name)
    assert re.fullmatch(
        rf"The push refers to repository \[{registry.host}/roundtrip/box\]\n"
        rf"([0-9a-f]{{12}}): Preparing\n\1: Pushed\n1: digest: {_DIGEST} size: \d+\n",
        pushed,
    ), pushed
    assert "Layer already exists" in one("push", name)
    digest = re.findall(rf"digest: ({_DIGEST})", pushed)[0]

    pulled = other("pull", name)
    assert re.fullmatch(
        rf"1: Pulling from roundtrip/box\n([0-9a-f]{{12}}): Pulling fs layer\n\1: Download complete\n"
        rf"\1: Pull complete\nDigest: {digest}\nStatus: Downloaded newer image for {name}\n{name}\n",
        pulled,
    ), pulled
    assert f"Status: Image is up to date for {name}\n" in other("pull", name)
    assert other("run", "--rm", "--network=none", name) == "hello from the image\n"
    assert other("run", "--rm", "--network=none", f"{registry.host}/roundtrip/box@{digest}") == "hello from the image\n"
    assert (other.root / "images/incoming").is_dir()
    assert list((other.root / "images/incoming").iterdir()) == []
