"""Settings before the verb that another command was given otherwise (docs/settings.md)."""

from __future__ import annotations

from pathlib import Path

from tests.runtime.conftest import IMAGE, Runtime


def test_another_state_directory_and_another_driver(runtime: Runtime, tmp_path: Path) -> None:
    """A container is where it was made, whoever asks for it."""
    runtime.on("overlay2")("run", "-d", "--name=works", "--network=none", IMAGE, "sleep", "1000")
    other = Runtime(runtime.root, tmp_path / "state", "vfs")
    assert other.status("works").startswith("Up")
    assert other("exec", "works", "echo", "here") == "here\n"
    assert other("diff", "works") == ""
    assert other.run(IMAGE, "echo", "elsewhere") == "elsewhere\n"
    assert other("rm", "-f", "works") == "works\n"
    assert runtime.ids() == []
