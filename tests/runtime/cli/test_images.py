"""import, images, rmi, and what `run` takes from an image; each on an installation of its own."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import missing
from tests.runtime.conftest import Runtime


@pytest.fixture
def fresh(tmp_path: Path, deadline: None) -> Iterator[Runtime]:
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "vfs")
    yield runtime
    assert runtime.ids() == []


def test_from_import_to_rmi(fresh: Runtime, rootfs_tar: Path) -> None:
    titles = ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert fresh("images").split() == titles
    image_id = fresh("import", rootfs_tar, "box").strip()
    assert image_id.startswith("sha256:")
    fresh("import", "--change", "ENV GREETING=hello", rootfs_tar, "box:greeting")
    listed = [line.split()[:3] for line in fresh("images").splitlines()[1:]]
    assert sorted(row[:2] for row in listed) == [["box", "greeting"], ["box", "latest"]]
    short = image_id.removeprefix("sha256:")[:12]
    assert short in fresh("images", "-q").split()
    assert image_id in fresh("images", "--no-trunc")
    assert fresh.run("box:greeting", "sh", "-c", "echo $GREETING") == "hello\n"
    assert fresh.run(short, "echo", "by id") == "by id\n"
    assert "Deleted: sha256:" in fresh("rmi", "box:greeting")
    assert "Deleted: sha256:" in fresh("rmi", "box")
    assert fresh("images").split() == titles
    # With the images went what the driver had unpacked of them.
    assert os.listdir(fresh.root / "drivers/vfs/snapshots") == ["identity"]
    assert "box" in fresh.refused("run", "--rm", "--pull=never", "box", "true", code=125)


@pytest.mark.parametrize("packer", ["gzip", "xz", "bzip2", "zstd"])
def test_import_of_packed_archives(fresh: Runtime, rootfs_tar: Path, tmp_path: Path, packer: str) -> None:
    if reason := missing(f"program:{packer}"):
        pytest.skip(reason)
    packed = tmp_path / "rootfs.packed"
    with open(packed, "wb") as out:
        subprocess.run([packer, "-c", str(rootfs_tar)], stdout=out, check=True)
    fresh("import", packed, "box")
    assert fresh.run("box", "cat", "/etc/motd") == "hello from the image\n"


def test_import_from_standard_input(fresh: Runtime, rootfs_tar: Path) -> None:
    fresh("import", "-", "box:piped", stdin=rootfs_tar.read_bytes())
    assert fresh.run("box:piped", "echo", "x") == "x\n"


def test_what_run_takes_from_an_image(fresh: Runtime, rootfs_tar: Path) -> None:
    changes = [
        'ENTRYPOINT ["sh", "-c"]', 'CMD ["echo $WORD; pwd; id -u; echo $HOME; echo $PATH"]', "ENV WORD=image PATH=/bin",
        "WORKDIR /tmp", "USER app", "STOPSIGNAL SIGUSR1",
    ]  # fmt: skip
    fresh("import", *(word for change in changes for word in ("-c", change)), rootfs_tar, "box")
    assert fresh.run("box") == "image\n/tmp\n1000\n/home/app\n/bin\n"
    given = ("-e", "WORD=mine", "-w", "/etc", "-u", "0")
    assert fresh.run(*given, "box", "echo $WORD; pwd; id -u; echo $HOME") == "mine\n/etc\n0\n/root\n"
    script = "trap 'exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    with fresh.popen("run", "--name=one", "--network=none", "box", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        fresh("stop", "one")
        assert process.wait() == 3
    fresh("rm", "one")


def test_an_image_without_a_command(fresh: Runtime, rootfs_tar: Path) -> None:
    fresh("import", rootfs_tar, "box")
    assert "No command specified" in fresh.refused("run", "--rm", "box", code=125)


def test_rmi_of_an_image_in_use(fresh: Runtime, rootfs_tar: Path) -> None:
    fresh("import", rootfs_tar, "box")
    fresh("run", "--name=user", "--network=none", "box", "true")
    assert "used by a container" in fresh.refused("rmi", "box", code=1)
    fresh("rm", "user")
    assert "Untagged: box:latest" in fresh("rmi", "box")


def test_first_runs_at_once_unpack_once(fresh: Runtime, rootfs_tar: Path) -> None:
    fresh("import", rootfs_tar, "box")
    running = [fresh.popen("run", "--rm", "--network=none", "box", "cat", "/etc/motd") for _ in range(3)]
    assert [process.communicate()[0] for process in running] == [b"hello from the image\n"] * 3
    assert len(os.listdir(fresh.root / "drivers/vfs/snapshots")) == 2  # one, and the identity


def _tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


HOSTILE = {
    "dot-dot": [_member("../../evil")],
    "dot-dot inside": [_member("a/../../evil")],
    "hard link out": [_member("evil", tarfile.LNKTYPE, "../../../etc/passwd")],
    "file through a link out": [_member("dir", tarfile.SYMTYPE, "/tmp"), _member("dir/../../evil")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_one_line_and_nothing_left(fresh: Runtime, tmp_path: Path, case: str) -> None:
    archive = _tar(tmp_path / "evil.tar", *HOSTILE[case])
    line = fresh.refused("import", archive, "evil", code=1)
    assert "evil.tar" in line
    assert fresh("images", "-q") == ""
    assert [names for _, _, names in os.walk(fresh.root / "images/blobs") if names] == []


def test_damaged_archives(fresh: Runtime, rootfs_tar: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    shutil.copy(rootfs_tar, cut)
    os.truncate(cut, rootfs_tar.stat().st_size // 2)
    for name, content in (("text.tar", b"this is not an archive\n" * 99), ("empty.tar", b""), ("cut.tar", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert name in fresh.refused("import", tmp_path / name, "bad", code=1)
    assert str(tmp_path) in fresh.refused("import", tmp_path, "bad", code=1)
    assert fresh("images", "-q") == ""


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "a:b:c", "a:", "-x/", "a/../b", "x" * 300])
def test_names_that_no_image_can_have(fresh: Runtime, rootfs_tar: Path, name: str) -> None:
    fresh.refused("import", "--", rootfs_tar, name)
    assert fresh("images", "-q") == ""
