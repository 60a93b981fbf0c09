"""The pages name files and tests that are there."""

from __future__ import annotations

import glob
import os
import re

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = ["ARCHITECTURE.md", "README.md", *sorted(glob.glob("docs/*.md", root_dir=ROOT))]
FILES = [
    os.path.join("/", os.path.relpath(directory, ROOT), name)
    for top in ("unionfs", "drivers", "runtime", "benchmarks", "tests")
    for directory, _, names in os.walk(os.path.join(ROOT, top))
    for name in names
]


@pytest.mark.parametrize("page", PAGES)
def test_python_files_that_are_named(page: str) -> None:
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        named = set(re.findall(r"`([\w/]*\w\.py)\b", file.read()))
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in FILES)] == []
