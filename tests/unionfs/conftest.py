"""Directories to give the command `unionfs` in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unionfs.command import AS_NOBODY, UNIONFS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `low` with one file, `up` and `mnt` empty."""
    for name in ("low", "up", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "low" / "file").write_text("content")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.fixture
def nobodys(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As `place`, but where another user can get to (pytest's own directory is closed), and `up` and `mnt` its own."""
    imports = subprocess.run([*AS_NOBODY, *UNIONFS, "--help"], capture_output=True, text=True, check=False)
    if imports.returncode:
        pytest.skip(f"another user cannot run the interpreter or read the source tree: {imports.stderr.strip()[-200:]}")
    with tempfile.TemporaryDirectory(prefix="fuse-aufs-nobody-") as directory:
        home = Path(directory)
        home.chmod(0o755)
        shutil.copytree(place, home, dirs_exist_ok=True)
        home.chmod(0o755)
        for name in ("up", "mnt"):
            os.chown(home / name, 65534, 65534)
        monkeypatch.chdir(home)
        yield home
        monkeypatch.chdir(place)
