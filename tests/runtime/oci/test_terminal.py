"""The pty of a container with process.terminal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import ContainerError
from runtime.oci import defaults
from tests.runtime.oci.conftest import Config, process
from tests.runtime.oci.keeper import Box, Keeper

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]


def _terminal(keeper: Keeper, config: Make, command: str, **changes: object) -> Box:
    return keeper.create(config("sh", "-c", command, process__terminal=True, **changes)).start()


def _end(box: Box) -> None:
    assert box.wait().code == 0
    box.delete()


def test_standard_streams_and_console_are_the_containers_own_pty(keeper: Keeper, config: Make) -> None:
    box = _terminal(keeper, config, "tty; stat -c %t /dev/console; test -t 0 && test -t 1 && test -t 2 && ls /dev/pts")
    lines = box.read("").split()
    assert lines[0] == "/dev/pts/0"
    assert int(lines[1], 16) in range(136, 144)
    assert lines[2:] == ["0", "ptmx"]
    _end(box)


def test_the_console_is_the_same_terminal(keeper: Keeper, config: Make) -> None:
    box = _terminal(keeper, config, "echo to-console >/dev/console; echo to-tty >/dev/tty")
    assert box.read("").split() == ["to-console", "to-tty"]
    _end(box)


def test_the_size_is_set_before_the_command_and_changes_reach_it(keeper: Keeper, config: Make) -> None:
    command = "stty size; trap 'stty size; exit 0' WINCH; echo set; while :; do sleep 0.01; done"
    box = _terminal(keeper, config, command, process__consoleSize={"height": 30, "width": 90})
    assert box.read("set").split()[:2] == ["30", "90"]
    box.resize(40, 100)
    assert box.read("").split()[-2:] == ["40", "100"]
    _end(box)


def test_what_is_typed_arrives_and_control_c_interrupts(keeper: Keeper, config: Make) -> None:
    command = "read line; echo got $line; trap 'echo cut; exit 0' INT; echo set; sleep 1000 & wait"
    box = _terminal(keeper, config, command)
    box.type("hello\n")
    assert "got hello" in box.read("set")
    box.type("\x03")
    assert "cut" in box.read("")
    _end(box)


def test_a_user_owns_the_terminal(keeper: Keeper, config: Make) -> None:
    user = {"uid": 1000, "gid": 1000}
    box = _terminal(keeper, config, "stat -c '%u %g' $(tty); echo again >/dev/stdout", process__user=user)
    assert box.read("").split() == ["1000", "5", "again"]
    _end(box)


def test_an_added_process_has_a_terminal_of_the_same_devpts(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sleep", "1000")).start()
    added = box.exec({**process("sh", "-c", "tty; ls /dev/pts; echo x >/dev/tty"), "terminal": True}).start()
    assert added.read("").split() == ["/dev/pts/0", "0", "ptmx", "x"]
    assert added.wait().code == 0
    box.signal(signal.SIGKILL)
    box.wait()
    box.delete()


def test_a_pts_that_the_image_brings_is_not_taken(keeper: Keeper, config: Make, rootfs: Path) -> None:
    """CVE-2025-52565: the slave comes from the master, and the master from a multiplexer that is one."""
    mounts = [mount for mount in defaults.MOUNTS if not str(mount["destination"]).startswith("/dev")]
    (rootfs / "dev/pts").mkdir(parents=True)
    (rootfs / "dev/pts/ptmx").write_text("")
    (rootfs / "dev/pts/0").symlink_to("/proc/sysrq-trigger")
    with pytest.raises(ContainerError, match=r"^cannot open a terminal: it is not a pty multiplexer"):
        _terminal(keeper, config, "true", mounts=mounts)
    (rootfs / "dev/pts/ptmx").unlink()
    (rootfs / "dev/pts/ptmx").symlink_to("/dev/ptmx")
    with pytest.raises(ContainerError, match=r"^cannot open a terminal: it is, or leads through, a symbolic link"):
        _terminal(keeper, config, "true", mounts=mounts)


def test_a_console_that_the_image_made_a_link_is_not_followed(keeper: Keeper, config: Make, rootfs: Path) -> None:
    mounts = [mount for mount in defaults.MOUNTS if mount["destination"] != "/dev"]
    (rootfs / "dev").mkdir()
    (rootfs / "victim").write_text("")
    (rootfs / "dev/console").symlink_to("/victim")
    with pytest.raises(ContainerError, match=r"^cannot open a terminal: it is, or leads through, a symbolic link"):
        _terminal(keeper, config, "true", mounts=mounts)
