"""zfs for the guest: the modules built from Debian's source for its kernel, and the programs that go with them.

    <cache>/zfs-<FORMAT>-<release of the kernel>/root/    goes over the guest's root directory: usr/sbin, usr/lib

Building takes a compiler and some minutes, once. A build that failed leaves its log in the cache, as zfs-failed.log.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tests.vm.kernel import Kernel, depmod, made_once
from tests.vm.packages import Archive, Unavailable, run

_FORMAT = 1
_PROGRAMS = ("zfsutils-linux", "libzfs6linux", "libzpool6linux", "libnvpair3linux", "libuutil3linux")


def layer(booted: Kernel) -> str:
    """The directory to put over the root of a guest with this kernel. Raises Unavailable."""
    made = made_once(name(booted), lambda directory: _make(directory, booted))
    return os.path.join(made, "root")


def name(booted: Kernel) -> str:
    """What it is called in the cache."""
    return f"zfs-{_FORMAT}-{booted.release}"


def _make(directory: str, booted: Kernel) -> None:
    sys.stderr.write(f"tests.vm: building zfs for Linux {booted.release}, which takes some minutes, once\n")
    release = booted.release
    archive = Archive(f"{directory}/apt")
    flavour = release.rpartition("-")[0]
    build, root = f"{directory}/build", f"{directory}/root"
    headers = f"{build}/usr/src/linux-headers-{release}"
    archive.unpack(
        [f"linux-headers-{release}", f"linux-headers-{flavour}-common", f"linux-kbuild-{flavour}", "zfs-dkms"], build
    )
    # The headers say where they would be installed.
    with open(f"{headers}/Makefile", "w", encoding="ascii") as makefile:
        makefile.write(f"include {build}/usr/src/linux-headers-{flavour}-common/Makefile\n")
    # Without it no type information is made for the modules, which would take pahole.
    os.unlink(f"{headers}/vmlinux")
    [version] = [entry for entry in os.listdir(f"{build}/usr/src") if entry.startswith("zfs-")]
    source = f"{build}/usr/src/{version}"
    log = os.path.join(os.path.dirname(directory), "zfs-failed.log")
    _build(source, log, [
        "./configure", "--disable-dependency-tracking", "--with-config=kernel", f"--with-linux-obj={headers}",
        f"--with-linux={build}/usr/src/linux-headers-{flavour}-common",
    ])  # fmt: skip
    _build(source, log, ["make", f"-j{os.cpu_count()}"])
    os.unlink(log)
    archive.unpack(_PROGRAMS, f"{directory}/programs")
    _merge(f"{directory}/programs", root)
    modules = f"usr/lib/modules/{release}"
    # What depmod looks at is the whole of the tree, so the kernel's modules are here too.
    shutil.copytree(booted.path(f"root/{modules}"), f"{root}/{modules}")
    os.mkdir(f"{root}/{modules}/extra")
    for module in ("spl", "zfs"):
        built = f"module/{module}.ko"
        run(["strip", "--strip-debug", "-o", f"{root}/{modules}/extra/{module}.ko", built], source)
    depmod(root, release)
    for part in ("apt", "build", "programs"):
        shutil.rmtree(f"{directory}/{part}")


def _build(source: str, log: str, command: Sequence[str]) -> None:
    with open(log, "ab") as file:
        done = subprocess.run(command, cwd=source, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if done.returncode:
        raise Unavailable(f"zfs cannot be built for the guest's kernel: {command[0]} failed, see {log}")


def _merge(programs: str, root: str) -> None:
    """Move what a package has in /bin, /sbin and /lib to /usr, where these lead: a directory would hide the link."""
    for part in ("bin", "sbin", "lib"):
        if os.path.isdir(f"{programs}/{part}"):
            shutil.copytree(f"{programs}/{part}", f"{root}/usr/{part}", symlinks=True, dirs_exist_ok=True)
    for part in ("sbin", "lib"):
        shutil.copytree(f"{programs}/usr/{part}", f"{root}/usr/{part}", symlinks=True, dirs_exist_ok=True)
