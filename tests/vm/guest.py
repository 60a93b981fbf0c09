"""One run of a command in a guest.

The guest tells the harness two things, each over a virtio port that ends in a pipe: what the command writes, and the
status it ended with. When the second has come qemu is killed: nothing in the guest is worth an orderly end.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

from tests.vm import zfs
from tests.vm.kernel import Kernel, kernel
from tests.vm.packages import Unavailable

_HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(_HERE))
TIMED_OUT = 124  # as timeout(1)
_CONSOLE_LINES = 60
# What emulation makes dear is left out: every switch between user and kernel flushes the TLB with page table isolation.
_KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests "
    "mitigations=off init_on_alloc=0 hardened_usercopy=off apparmor=0 audit=0"
)


class GuestFailed(Exception):
    """The guest ended, or was ended, before its command did; the text has the end of its console."""


class TimedOut(GuestFailed):
    """It took longer than it was given."""


def run(
    command: Sequence[str],
    write: Callable[[bytes], object],
    *,
    with_zfs: bool = False,
    timeout: float = 600.0,
    memory: int = 3072,
) -> int:
    """Run `command` in a guest as root, in the repository's directory, and give its exit status.

    What it writes goes to `write`, as it comes. `timeout` is in seconds, boot included; `memory` in MiB. zfs is built
    when it never was, which the timeout does not count.

    Raises Unavailable when there is no guest to be had, TimedOut, and GuestFailed when the guest died.
    """
    if os.geteuid():
        raise Unavailable("the guest's root directory is this machine's, which only root can read")
    qemu = shutil.which("qemu-system-x86_64")
    if not qemu:
        raise Unavailable("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
    booted = kernel()
    layers = [zfs.layer(booted)] if with_zfs else []
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        shares = {"run": directory, "host": "/"}
        shares |= {f"layer{number}": layer for number, layer in enumerate([*layers, booted.path("root")])}
        for name in ("init.sh", "start.sh"):
            shutil.copy(os.path.join(_HERE, name), directory)
        _write(directory, "layers", " ".join(tag for tag in shares if tag.startswith("layer")))
        _write(directory, "modules", "zfs" if with_zfs else "")
        _write(directory, "repository", REPOSITORY)
        _write(directory, "command", f"exec {shlex.join(command)}\n")
        return _boot([qemu, *_machine(booted, shares, memory)], directory, write, timeout)


def _write(directory: str, name: str, text: str) -> None:
    with open(os.path.join(directory, name), "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _machine(booted: Kernel, shares: dict[str, str], memory: int) -> list[str]:
    arguments = [
        # One processor: a kernel that patches its own branches (static keys) while another processor runs them gets
        # an int3 that nobody expects, as qemu translates by the block; seen when the first container starts.
        "-accel", "tcg,tb-size=512", "-cpu", "max", "-smp", "1", "-m", str(memory),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", booted.path("vmlinuz"), "-initrd", booted.path("initrd"),
        "-append", _KERNEL_OPTIONS,
    ]  # fmt: skip
    for tag, path in shares.items():
        path = path.replace(",", ",,")
        arguments += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"]
    return arguments


def _boot(machine: list[str], directory: str, write: Callable[[bytes], object], timeout: float) -> int:
    """Run qemu until the guest has said how its command ended."""
    deadline = time.monotonic() + timeout
    output, output_end = os.pipe()
    status, status_end = os.pipe()
    try:
        ports = ["-serial", f"file:{directory}/console", "-device", "virtio-serial"]
        for name, end in (("output", output_end), ("status", status_end)):
            ports += ["-chardev", f"file,id={name},path=/dev/fd/{end}"]
            ports += ["-device", f"virtserialport,chardev={name},name={name}"]
        # setpriv: qemu does not outlive a harness that is killed.
        with open(os.path.join(directory, "qemu"), "wb") as said:
            emulator = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *machine, *ports],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                pass_fds=(output_end, status_end), process_group=0,
            )  # fmt: skip
    finally:
        os.close(output_end)
        os.close(status_end)
    try:
        return _follow(output, status, write, deadline)
    except GuestFailed as failure:
        raise type(failure)(f"{failure}\n{_tail(directory, 'qemu')}{_tail(directory, 'console')}".rstrip()) from None
    finally:
        emulator.kill()
        emulator.wait()
        os.close(output)
        os.close(status)


def _follow(output: int, status: int, write: Callable[[bytes], object], deadline: float) -> int:
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        selector.register(status, selectors.EVENT_READ)
        while not said.endswith(b"\n"):
            ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
            if not ready:
                raise TimedOut("the guest took too long; the end of its console:")
            if output in ready:
                data = os.read(output, 1 << 16)
                if not data:
                    selector.unregister(output)
                write(data)
            # Only when nothing is left to read of the output: the guest has sent that first.
            elif status in ready:
                data = os.read(status, 100)
                if not data:
                    raise GuestFailed("the guest ended without saying how its command did; the end of its console:")
                said += data
    return int(said)


def _tail(directory: str, name: str) -> str:
    try:
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-_CONSOLE_LINES:])
    except FileNotFoundError:
        return ""
