"""The guest's kernel: fetched once, with the modules that tests need and an initramfs that gets it started.

    <cache>/kernel-<FORMAT>/vmlinuz
                            initrd       busybox, what the root directory takes of modules, and _INIT
                            release      the kernel's version, as uname -r says it
                            root/        goes over the guest's root directory: usr/lib/modules

A directory in the cache is complete or not there: it is made under another name, by one process at a time.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.vm.packages import Archive, Unavailable, run

_FORMAT = 1  # of what is cached; whatever changes what this file makes changes this
# What it takes to see this machine's files. init.sh, which comes from there, does the rest.
_BOOT = ("9p", "9pnet_virtio", "overlay")
_INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro run /run
. /run/init.sh
"""
# The other modules are loaded on demand: these directories of the kernel's tree, and whatever they depend on.
_TREES = (
    "drivers/block/loop", "drivers/md", "drivers/net/dummy", "drivers/net/tun", "drivers/net/veth",
    "fs/9p", "fs/btrfs", "fs/erofs", "fs/ext4", "fs/isofs", "fs/overlayfs", "fs/quota", "fs/squashfs", "fs/xfs",
    "arch/x86/crypto", "crypto", "lib", "net/9p", "net/bridge", "net/ipv4", "net/ipv6", "net/netfilter",
)  # fmt: skip


NAME = f"kernel-{_FORMAT}"


class Kernel(NamedTuple):
    directory: str
    release: str

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)


def kernel() -> Kernel:
    """The guest's kernel, from the cache or the Debian archive. Raises Unavailable."""
    directory = made_once(NAME, _make)
    with open(os.path.join(directory, "release"), encoding="ascii") as file:
        return Kernel(directory, file.read().strip())


def made_once(name: str, make: Callable[[str], None]) -> str:
    """The directory `name` of the cache, made by `make(directory)` if it is not there. Raises Unavailable.

    Who comes second waits for the one that is making it. What a killed process has left half-made is deleted.
    """
    cache = _cache()
    target = os.path.join(cache, name)
    if is_made(name):
        return target
    try:
        os.makedirs(cache, exist_ok=True)
        lock = os.open(os.path.join(cache, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"{cache} cannot be used ({error.strerror}): set FUSE_AUFS_CACHE") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(target):
            shutil.rmtree(f"{target}.new", ignore_errors=True)
            os.mkdir(f"{target}.new")
            make(f"{target}.new")
            os.sync()
            os.rename(f"{target}.new", target)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{target} cannot be made: {error}") from error
    finally:
        os.close(lock)
    return target


def is_made(name: str) -> bool:
    """Whether made_once() has nothing to do."""
    return os.path.isdir(os.path.join(_cache(), name))


def _cache() -> str:
    return os.path.realpath(os.environ.get("FUSE_AUFS_CACHE") or "/var/cache/fuse-aufs/vm")


def _make(directory: str) -> None:
    archive = Archive(os.path.join(directory, "apt"))
    package = archive.dependency("linux-image-6.12-amd64")
    unpacked = os.path.join(directory, "unpacked")
    archive.unpack([package], unpacked)
    release = package.removeprefix("linux-image-")
    shutil.move(f"{unpacked}/boot/vmlinuz-{release}", f"{directory}/vmlinuz")
    with open(f"{directory}/release", "w", encoding="ascii") as file:
        file.write(f"{release}\n")
    root = os.path.join(directory, "root")
    dependencies = _install_modules(f"{unpacked}/lib/modules/{release}", root, release)
    _pack_initrd(directory, f"{root}/usr/lib/modules/{release}", dependencies)
    shutil.rmtree(unpacked)
    shutil.rmtree(f"{directory}/apt")


def _install_modules(source: str, root: str, release: str) -> dict[str, list[str]]:
    """Decompress the modules that the guest may want into `root`, and give the paths that each depends on."""
    run(["depmod", "--basedir", source.partition("/lib/modules/")[0], release], "/")
    with open(f"{source}/modules.dep", encoding="ascii") as file:
        lines = [line.partition(":") for line in file]
    needs = {module: rest.split() for module, _, rest in lines}
    wanted = {module for module in needs if module.startswith(tuple(f"kernel/{tree}" for tree in _TREES))}
    wanted.update(below for module in list(wanted) for below in needs[module])
    target = f"{root}/usr/lib/modules/{release}"
    for module in wanted:
        path = os.path.join(target, module.removesuffix(".xz"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with lzma.open(f"{source}/{module}") as compressed, open(path, "wb") as plain:
            shutil.copyfileobj(compressed, plain)
    for name in os.listdir(source):
        if name == "modules.order" or name.startswith("modules.builtin"):
            shutil.copy(f"{source}/{name}", target)
    depmod(root, release)
    return {module.removesuffix(".xz"): [name.removesuffix(".xz") for name in needs[module]] for module in wanted}


def depmod(root: str, release: str) -> None:
    """Write the index of the modules below `root`/usr/lib/modules, from which the guest loads on demand."""
    run(["depmod", "--basedir", f"{root}/usr", release], "/")


def _pack_initrd(directory: str, modules: str, needs: dict[str, list[str]]) -> None:
    content = os.path.join(directory, "content")
    for name in ("bin", "dev", "modules", "proc", "run", "sys"):
        os.makedirs(os.path.join(content, name))
    order: list[str] = []
    for name in _BOOT:
        [module] = [path for path in needs if os.path.basename(path) == f"{name}.ko"]
        # modules.dep names what is needed first last.
        order += [path for path in [*reversed(needs[module]), module] if path not in order]
    for path in order:
        shutil.copy(f"{modules}/{path}", f"{content}/modules")
    _write(f"{content}/modules/order", (f"{os.path.basename(path)}\n" for path in order))
    _write(f"{content}/init", [_INIT])
    os.chmod(f"{content}/init", 0o755)
    busybox = shutil.which("busybox")
    if not busybox:
        raise Unavailable("busybox is not installed: apt-get install busybox-static")
    shutil.copy(busybox, f"{content}/bin/busybox")
    for applet in ("sh", "mount", "insmod", "mkdir", "cat", "switch_root", "ln"):
        os.symlink("busybox", f"{content}/bin/{applet}")
    names = "".join(f"{os.path.relpath(os.path.join(at, name), content)}\n"
                    for at, below, files in os.walk(content) for name in (*below, *files))
    with open(f"{directory}/initrd", "wb") as initrd:
        subprocess.run(["cpio", "--quiet", "--create", "--format=newc"], input=names.encode(), stdout=initrd,
                       cwd=content, check=True)
    shutil.rmtree(content)


def _write(path: str, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
