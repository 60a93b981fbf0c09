"""The machine's facts, against what other programs say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import facts


def test_facts_of_this_machine() -> None:
    found = facts.gather(["no-such-peer"])
    assert found["kernel"] == subprocess.check_output(["uname", "-r"], text=True).strip()
    assert found["cores"] == int(subprocess.check_output(["nproc"], text=True))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["no-such-peer"] == "not installed"
    assert found["cpu"]
    json.dumps(found)


def test_the_file_system_is_the_one_mounted_there(tmp_path: Path) -> None:
    said = subprocess.check_output(["findmnt", "-n", "-o", "FSTYPE", "--target", str(tmp_path)], text=True).strip()
    assert facts.filesystem(str(tmp_path)) == said


def test_a_version_is_found_beside_other_programs_versions(tmp_path: Path) -> None:
    program = tmp_path / "peer"
    program.write_text("#!/bin/sh\necho fusermount3 version: 3.14.0\necho peer: version 1.10 >&2\n")
    os.chmod(program, 0o755)
    assert facts.program_version(str(program)) == "1.10"
