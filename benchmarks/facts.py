"""Facts of the machine that a measurement was made on: without these, its figures say nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence

from unionfs.linux.mounts import mountinfo

Facts = dict[str, str | int | float]


PROGRAMS = ("git", "tar", "gcc")  # those that the workloads run


def gather(peers: Sequence[str]) -> Facts:
    """Facts of this machine now; `peers` are the programs measured."""
    facts: Facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    for package in ("fuse-aufs", "pyfuse3", "trio"):
        facts[package] = importlib.metadata.version(package)
    facts["libfuse3"] = program_version("fusermount3")
    for program in (*peers, *PROGRAMS):
        facts[program] = program_version(program)
    return facts


def cpu_model() -> str:
    """The first `model name` of /proc/cpuinfo; architectures without one have the machine's name."""
    with open("/proc/cpuinfo") as table:
        for line in table:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def filesystem(path: str) -> str:
    """The type of the file system that `path` is on, as /proc/self/mountinfo names it."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((point.fstype for point in reversed(mountinfo()) if point.device == number), "unknown")


def program_version(program: str) -> str:
    """The first number with dots that `program --version` prints on a line naming the program, or else on any line."""
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return "not installed"
    text = result.stdout + result.stderr
    named = [line for line in text.splitlines() if os.path.basename(program) in line]
    found = re.search(r"\d+(\.\d+)+", "\n".join([*named, text]))
    return found.group() if found else "unknown"
