"""What a container writes is never taken for a mark of ours: `diff` tells the truth of it, and `commit` keeps what the
container shows, on each driver and from each to each. What drivers promise of it is in tests/contracts/snapshotter."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.conftest import Runtime

pytestmark = pytest.mark.needs("root", "program:setfattr", "program:ldd")

_DRIVERS = ("fuse-aufs", "overlay2", "vfs")
_WRITE = """
for attribute in overlay unionfs fuseoverlayfs; do
    setfattr -n user.$attribute.opaque -v y /d && echo $attribute
done
touch /d/.wh..wh..opq /d/.wh.a /d/.wh.b
mknod /d/c c 0 0
true
"""


@pytest.fixture
def with_setfattr(runtime: Runtime, tmp_path: Path) -> list[str]:
    """Volumes by which a container has setfattr(1) of the host."""
    program = shutil.which("setfattr")
    assert program
    lines = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.split()
    libraries = [word for word in lines if word.startswith("/")]
    return [word for path in (program, *libraries) for word in ("-v", f"{path}:{path}:ro")]


def test_diff_and_commit(each_driver: Runtime, with_setfattr: list[str]) -> None:
    runtime = each_driver
    each_driver(
        "run", "--name", "base", "--network", "none", "box", "sh", "-c",
        "mkdir -m 777 /d; echo 1 >/d/a; echo 2 >/d/b; mkdir /d/sub; chown -R 1000 /d",
    )  # fmt: skip
    try:
        runtime("commit", "base", "marked-base")
        marked = runtime(
            "run", "--name", "writer", "--network", "none", "-u", "1000", *with_setfattr, "marked-base", "sh", "-c",
            _WRITE,
        )  # fmt: skip
        reserved = {"overlay", "unionfs"} if runtime.driver == "fuse-aufs" else set()
        assert {*marked.split()} == {"overlay", "unionfs", "fuseoverlayfs"} - reserved
        told = [line for line in runtime("diff", "writer").splitlines() if "/d" in line]
        assert [line for line in told if line.startswith("D")] == [], told
        runtime("commit", "writer", "marked")
        for name in _DRIVERS:
            shown = runtime.on(name).run("marked", "sh", "-c", "cd /d; ls -a; cat a b")
            assert shown.split() == [".", "..", "a", "b", "sub", "1", "2"], name
    finally:
        runtime("rm", "-f", "base", "writer")
        for image in ("marked", "marked-base"):
            runtime.call("rmi", image)
