"""Containers on every driver: the same behaviour, and on fuse-aufs a plain AUFS layer of what changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.runtime.conftest import IMAGE, Runtime


def test_a_container_installs_files_with_tar_and_runs_them(each_driver: Runtime, tmp_path: Path) -> None:
    runtime = each_driver
    package = tmp_path / "package"
    (package / "opt/tool/bin").mkdir(parents=True)
    (package / "opt/tool/bin/greet").write_text("#!/bin/sh\n. /opt/tool/words\necho $word from $(hostname) to $1\n")
    (package / "opt/tool/bin/greet").chmod(0o755)
    (package / "opt/tool/words").write_text("word=greetings\n")
    os.link(package / "opt/tool/words", package / "opt/tool/same")
    (package / "bin").mkdir()
    (package / "bin/greet").symlink_to("../opt/tool/bin/greet")
    (package / "etc").mkdir()
    (package / "etc/motd").write_text("replaced by the package\n")
    subprocess.run(["tar", "-C", str(package), "-cf", str(tmp_path / "package.tar"), "."], check=True)
    script = """
        tar -C / -xf /package.tar && greet you && cat /etc/motd && stat -c %h /opt/tool/words &&
        rm /bin/vi && ! ls /bin/vi 2>/dev/null && mv /opt /srv && PATH=/srv/tool/bin:$PATH && ls /srv/tool /srv
    """
    shown = runtime.run(
        "--hostname=hull", "-v", f"{tmp_path}/package.tar:/package.tar:ro", IMAGE, "sh", "-ec", script
    )
    assert shown.split("\n") == [
        "greetings from hull to you", "replaced by the package", "2", "/srv:", "tool", "", "/srv/tool:", "bin", "same",
        "words", "",
    ]  # fmt: skip
    # The image is as it was.
    look = "cat /etc/motd; ls /bin/vi; ls /srv 2>/dev/null || echo nothing"
    assert runtime.run(IMAGE, "sh", "-c", look) == "hello from the image\n/bin/vi\nnothing\n"


def test_a_compile_like_load_of_small_files(each_driver: Runtime) -> None:
    script = """
        mkdir -p /work/src; i=0; while [ $i -lt 200 ]; do echo "line $i" >/work/src/$i.txt; i=$((i+1)); done
        cat /work/src/*.txt | md5sum; cp -a /work/src /work/copy; rm -r /work/src; mv /work/copy /work/src
        cat /work/src/*.txt | md5sum; chown -R 7:8 /work; find /work -user 7 | wc -l
    """
    first, second, count = each_driver.run(IMAGE, "sh", "-ec", script).splitlines()
    assert first == second
    assert count == "202"


def test_a_root_has_set_user_id_programs_and_devices(each_driver: Runtime, compiled: Callable[[str], str]) -> None:
    """For the container; which devices can be opened is for its cgroup to say."""
    euid = compiled("#include <stdio.h>\n#include <unistd.h>\nint main() { printf(\"%d\\n\", geteuid()); }")
    script = """
        cp /euid /set; chmod 4755 /set; mknod /null c 1 3; mknod /loops c 10 237; chmod 666 /null /loops
        su app -c '/euid; /set; echo x >/null && echo null; exec 3</loops'
    """
    done = each_driver.call("run", "--rm", "--network=none", "-v", f"{euid}:/euid:ro", IMAGE, "sh", "-c", script)
    assert done.stdout == "1000\n0\nnull\n"
    assert "can't open /loops: Operation not permitted" in done.stderr


def test_what_a_stopped_container_changed_is_an_aufs_layer(runtime: Runtime) -> None:
    script = "echo changed >/etc/motd; rm /bin/vi; rm -r /home; mkdir /home; echo new >/home/x"
    started = runtime("run", "-d", "--name=changed", "--network=none", IMAGE, "sh", "-ec", script).strip()
    with runtime.popen("logs", "-f", "changed") as ended:
        assert ended.wait() == 0
    assert runtime.status("changed").startswith("Exited (0)")
    (layer,) = [
        directory.removesuffix("/bin") for directory, _, names in os.walk(runtime.root / "drivers/fuse-aufs")
        if directory.endswith("/bin") and ".wh.vi" in names
    ]  # fmt: skip
    assert Path(layer, "etc/motd").read_text() == "changed\n"
    assert Path(layer, "home/.wh..wh..opq").exists()
    assert Path(layer, "home/x").read_text() == "new\n"
    assert not Path(layer, "bin/busybox").exists()
    assert len(started) == 64
    runtime("rm", "changed")
    assert not Path(layer).exists()


def test_containers_on_different_drivers_share_the_image_store(installation: Runtime) -> None:
    installation.on("vfs")("run", "--name=on-vfs", "--network=none", IMAGE, "true")
    # The driver is the container's, whatever the command line says later.
    assert installation.on("overlay2")("rm", "on-vfs") == "on-vfs\n"
    assert len(installation("images", "-q").split()) == 1


# A command that runs another one when it first comes to a call.
_BESIDE = """
import json, subprocess, sys
from importlib import import_module
place, beside = sys.argv[1], json.loads(sys.argv[2])
module, _, name = place.partition(":")
owner = import_module(module)
real = getattr(owner, name)
def call(*arguments, **named):
    if beside:
        subprocess.run(beside, check=True, stdout=subprocess.DEVNULL)
        beside.clear()
    return real(*arguments, **named)
setattr(owner, name, call)
from runtime.cli import command
command(sys.argv[3:])
"""


def test_a_container_that_starts_while_a_layer_is_filled(each_driver: Runtime) -> None:
    runtime = each_driver
    runtime("run", "--name=first", "--network=none", IMAGE, "sh", "-c", "echo new >/new")
    runtime("commit", "first", "layered")
    runtime("rm", "first")
    beside = runtime.command("run", "-d", "--name=beside", "--network=none", IMAGE, "sleep", "1000")
    words = runtime.command("run", "--rm", "--network=none", "layered", "cat", "/new")[3:]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BESIDE, "runtime.images.layer:put_out", json.dumps(beside), *words],
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("new\n", "")
        assert runtime.status("beside").startswith("Up")
    finally:
        runtime("rm", "-f", "beside")
        runtime("rmi", "layered")


def test_one_damaged_container_does_not_keep_the_others(each_driver: Runtime) -> None:
    runtime = each_driver
    runtime("run", "--name=older", "--network=none", IMAGE, "true")
    directory = runtime.root / "drivers" / runtime.driver / "snapshots"
    before = set(os.listdir(directory))
    runtime("run", "--name=newer", "--network=none", IMAGE, "true")
    (lost,) = set(os.listdir(directory)) - before
    shutil.rmtree(directory / lost)
    assert runtime("system", "df").splitlines()[2].split()[:2] == ["Containers", "2"]
    assert len(runtime("container", "prune", "-f").split("\n\n")[0].splitlines()) == 3
    assert runtime.ids() == []
