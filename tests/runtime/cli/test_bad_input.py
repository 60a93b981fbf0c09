"""What cannot be: one line that names the thing, docker's exit code, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.conftest import IMAGE, Runtime, links

# Words, exit code, what the line must name.
REFUSED = [
    ("nosuchverb", 125, "'nosuchverb'"),
    ("--nope ps", 125, "--nope"),
    ("--root= ps", 125, "--root"),
    ("run", 125, "1 argument"),
    ("run --nope box true", 125, "--nope"),
    ("run -q box true", 125, "'q' in -q"),
    ("run --name", 125, "--name"),
    ("run --rm=x box true", 125, "'x'"),
    ("run --name=a box true", 125, "'a'"),
    ("run --name=a/b box true", 125, "'a/b'"),
    ("run --name= box true", 125, "''"),
    ("run --hostname=a_b! box true", 125, "'a_b!'"),
    ("run --memory=lots box true", 125, "'lots'"),
    ("run --memory=1k box true", 125, "6m"),
    ("run --cpus=none box true", 125, "'none'"),
    ("run --cpus=1000000 box true", 125, "1000000"),
    ("run --pids-limit=few box true", 125, "'few'"),
    ("run -v data:/data box true", 125, "'data'"),
    ("run -v /data box true", 125, "'/data'"),
    ("run -v /a:/b:x box true", 125, "'/a:/b:x'"),
    ("run -v /tmp:/proc/sys box true", 125, "/proc"),
    ("run -e =x box true", 125, "'=x'"),
    ("run -w here box true", 125, "'here'"),
    ("run --network=lan box true", 125, "lan"),
    ("run --rm --network=none -u nobody box true", 125, "nobody"),
    ("run --pull=never nosuchimage true", 125, "nosuchimage"),
    ("run Not/A//Name true", 125, "Not/A//Name"),
    ("--storage-driver=nope run box true", 125, "'nope'"),
    ("exec", 125, "2 arguments"),
    ("exec nosuch true", 1, "nosuch"),
    ("stop", 125, "1 argument"),
    ("stop -t soon nosuch", 125, "'soon'"),
    ("stop -t 3000000000 nosuch", 125, "'3000000000'"),
    ("stop nosuch", 1, "nosuch"),
    ("rm", 125, "1 argument"),
    ("rm nosuch", 1, "nosuch"),
    ("rm ../names", 1, "../names"),
    ("logs", 125, "1 argument"),
    ("logs nosuch", 1, "nosuch"),
    ("logs --tail=x nosuch", 125, "'x'"),
    ("rmi", 125, "1 argument"),
    ("rmi nosuch", 1, "nosuch"),
    ("import", 125, "2 arguments"),
    ("import /nonexistent.tar some:tag", 1, "/nonexistent.tar"),
    ("ps extra", 125, "no arguments"),
    ("images a b", 125, "1 argument at most"),
    ("info extra", 125, "no arguments"),
]


@pytest.mark.parametrize(("words", "code", "named"), REFUSED, ids=[words for words, _, _ in REFUSED])
def test_refused(runtime: Runtime, words: str, code: int, named: str) -> None:
    assert named in runtime.refused(*words.split(), code=code)


@pytest.mark.parametrize("verb", ["ps", "run box true", "images", "rm x", "info", "import /dev/null x"])
def test_without_root_it_says_so(tmp_path: Path, verb: str) -> None:
    runtime = Runtime(tmp_path / "root", tmp_path / "state")
    script = "import os, sys; os.setuid(65534); from runtime.cli import main; main()"
    words = runtime.command(*verb.split())[3:]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "runtime: it needs root: run it as root or with sudo\n"


def test_nothing_of_a_refused_container_is_left(runtime: Runtime) -> None:
    """Refused late, with the root file system mounted and the network not yet there, and refused at the very last."""
    for words in (["-u", "nobody"], ["-v", "/etc/passwd/x:/data"], ["--name=late", "-w", "/etc/motd"]):
        runtime.refused("run", "--rm", *words, IMAGE, "true")
    assert runtime.ids() == []
    assert os.listdir(runtime.root / "containers/names") == []
    assert links() == ["lo"]


def test_debug_shows_where(runtime: Runtime) -> None:
    done = runtime.call("--debug", "run", "--pull=never", "nosuchimage", "true")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "NoSuchImage" in done.stderr
