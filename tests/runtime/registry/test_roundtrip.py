"""Images to and from a real registry by the command line, in docker's words."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.runtime.conftest import Runtime, Terminal
from tests.runtime.registry.conftest import Registry
from tests.runtime.registry.lying import Honest, Server, made

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


def test_run_gets_what_is_missing(
    fresh: Runtime, new_runtime: Callable[[], Runtime], registry: Registry, rootfs_tar: Path
) -> None:
    name = f"{registry.host}/roundtrip/missing"
    maker = new_runtime()
    for text in ("first", "second"):
        maker("import", "-c", f'CMD ["echo", "{text}"]', rootfs_tar, name)
        maker("push", "-q", name)
        if text == "first":
            assert fresh.refused("run", "--pull=never", name, code=125).startswith("runtime: there is no image")
            done = fresh.call("run", "--rm", "--network=none", name)
            assert done.stdout == "first\n", "nothing of the pull is on standard output"
            said = done.stderr.splitlines()
            assert said[0] == f"Unable to find image '{name}:latest' locally"
            assert said[1] == "latest: Pulling from roundtrip/missing"
            assert said[-1] == f"Status: Downloaded newer image for {name}:latest"
    done = fresh.call("run", "--rm", "--network=none", name)
    assert (done.stdout, done.stderr) == ("first\n", "")
    assert fresh("run", "--rm", "--network=none", "--pull", "always", name) == "second\n"
    assert fresh("run", "--rm", "--network=none", "--pull", "never", name) == "second\n"
    assert "invalid --pull" in fresh.refused("run", "--pull", "sometimes", name, code=125)
    missing = fresh.call("run", f"{name}:missing")
    assert missing.returncode == 125
    assert missing.stderr.splitlines()[-1].startswith(f"runtime: manifest for {name}:missing not found")
    assert fresh.refused("run", "A B", code=125).startswith("runtime: there is no image 'A B'")


def test_run_of_what_is_there_loads_nothing_of_registries(fresh: Runtime, rootfs_tar: Path) -> None:
    """Starting a container is to be quick."""
    fresh("import", rootfs_tar, "here")
    _, _, _, *words = fresh.command("run", "--rm", "--network=none", "here", "true")
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "runtime", *words], capture_output=True, text=True, timeout=100
    )
    assert traced.returncode == 0, traced.stderr[-2000:]
    assert "runtime.images.store" in traced.stderr
    assert "runtime.registry" not in traced.stderr
    assert "http.client" not in traced.stderr


def test_names_and_quiet(fresh: Runtime, registry: Registry, rootfs_tar: Path) -> None:
    name = f"{registry.host}/roundtrip/names"
    fresh("import", rootfs_tar, name)
    assert fresh("push", "-q", name) == f"{name}:latest\n"
    assert fresh("pull", "-q", name) == f"{name}:latest\n"
    assert fresh("push", name).startswith("Using default tag: latest\n")
    digest = re.findall(_DIGEST, fresh("pull", name))[0]
    fresh("rmi", name)
    assert fresh("pull", "-q", f"{name}:ignored@{digest}") == f"{name}:ignored@{digest}\n"
    assert "a digest is no name to push to" in fresh.refused("push", "-q", f"{name}@{digest}")
    assert "exactly 1 argument" in fresh.refused("pull", code=125)
    assert "exactly 1 argument" in fresh.refused("push", code=125)
    assert "no image" in fresh.refused("push", "-q", f"{name}:never")
    assert "invalid platform" in fresh.refused("pull", "-q", "--platform", "linux/", name, code=125)


class Waits(Honest):
    def pour(self, digest: str, data: bytes) -> None:
        if digest in self.server.image.layers:
            self.server.more["seen"].wait(30)
        super().pour(digest, data)


def test_a_terminal_has_bars(
    fresh: Runtime, lying: Callable[..., Server], terminal: Callable[..., Terminal]
) -> None:
    """Drawn anew in their place: no line is left of what was under way."""
    seen = threading.Event()
    server = lying(Waits, made((50_000, 60_000)), seen=seen)
    screen = terminal(fresh.command("pull", f"{server.host}/x"), columns=70)
    drawn = screen.expect(f": Downloading  [>{' ' * 39}")
    seen.set()
    drawn += screen.expect("Status: ")
    assert screen.wait() == 0
    drawn += screen.output.decode()
    assert "\x1b[2A\x1b[J" in drawn
    assert max(len(line) for line in re.split(r"\r\n|\x1b\[J", drawn) if "Downloading" in line) < 70
    shown = _screen(drawn)
    assert [line.partition(": ")[2] for line in shown[2:4]] == ["Pull complete", "Pull complete"]
    assert not [line for line in shown if "Downloading" in line]


def _screen(drawn: str) -> list[str]:
    """What is seen in the end, of text with our two escapes: up N lines, and clear from here on."""
    lines = [""]
    for up, text, end in re.findall(r"\x1b\[(\d+)A|\x1b\[J|([^\r\n\x1b]+)|(\r\n)", drawn):
        if up:
            del lines[len(lines) - 1 - int(up) :]
            lines.append("")
        lines[-1] += text
        if end:
            lines.append("")
    return [line for line in lines if line]
