"""What a container is asked to be: values, and the rules that hold for them whoever asks, a command line or an API."""

from __future__ import annotations

import os
from typing import NamedTuple

from runtime.engine.containers import names
from runtime.errors import InvalidValue

MINIMUM_MEMORY = 6 << 20
MINIMUM_QUOTA = 1 << 20
CPU_PERIOD = 100_000  # microseconds
_FEWEST_CPUS = 0.01
_UNITS = "kmgtp"


class Volume(NamedTuple):
    """A directory or file of the host in the container; both paths absolute and normal."""

    source: str
    destination: str
    read_only: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.destination}{':ro' if self.read_only else ''}"

    def check(self) -> None:
        """InvalidValue for one that cannot be mounted."""
        for path, which in ((self.source, "source"), (self.destination, "destination")):
            if not os.path.isabs(path):
                raise InvalidValue(f"invalid volume {str(self)!r}: the {which} {path!r} is not an absolute path")
            if "\0" in path:
                raise InvalidValue(f"invalid volume {str(self)!r}: a path cannot contain a null character")
        if os.path.normpath(self.destination) in ("/", "//"):
            raise InvalidValue(f"invalid volume {str(self)!r}: the destination cannot be '/'")


class CreateRequest(NamedTuple):
    """Everything that is decided before there is a container. Defaults are docker's."""

    image: str
    command: tuple[str, ...] = ()
    name: str = ""
    hostname: str = ""
    env: tuple[str, ...] = ()  # NAME=VALUE, or NAME alone: not in the container even if the image has it
    workdir: str = ""
    user: str = ""
    volumes: tuple[Volume, ...] = ()
    memory: int = 0  # bytes; 0 for no limit
    cpu_quota: int = 0  # microseconds of CPU time a CPU_PERIOD; 0 for no limit
    pids: int = 0  # 0 for no limit
    network: str = "bridge"
    remove: bool = False
    terminal: bool = False
    stdin: bool = False
    quota: int = 0  # bytes that it may write; 0 for no limit
    pull: str = "missing"  # or "always", "never": when the image is got from its registry

    def check(self) -> None:
        """InvalidValue for the first value that no container can have."""
        if not self.image:
            raise InvalidValue("the name of the image is empty")
        if self.name:
            names.check_name(self.name)
        if self.hostname:
            names.check_hostname(self.hostname)
        for entry in self.env:
            check_variable(entry)
        if self.workdir:
            check_directory(self.workdir)
        taken: set[str] = set()
        for volume in self.volumes:
            volume.check()
            if volume.destination in taken:
                raise InvalidValue(f"two volumes have the destination {volume.destination!r}")
            taken.add(volume.destination)
        if self.memory < 0 or 0 < self.memory < MINIMUM_MEMORY:
            raise InvalidValue(f"the smallest memory limit is {_written(MINIMUM_MEMORY)}, not {_written(self.memory)}")
        if self.quota < 0 or 0 < self.quota < MINIMUM_QUOTA:
            least = _written(MINIMUM_QUOTA)
            raise InvalidValue(f"the smallest size of a container is {least}, not {_written(self.quota)}")
        if self.cpu_quota:
            cpu_quota(self.cpu_quota / CPU_PERIOD)


def cpu_quota(cpus: float) -> int:
    """The quota for that many CPUs: microseconds in each CPU_PERIOD; 0, for no limit, for none. InvalidValue for more
    than there are, and for fewer than the kernel can count."""
    available = os.cpu_count() or 1
    if cpus == 0:
        return 0
    if not _FEWEST_CPUS <= cpus <= available:
        raise InvalidValue(f"the number of CPUs ranges from 0.01 to {available}.00 on this machine, not {cpus:.10g}")
    return round(cpus * CPU_PERIOD)


def check_variable(entry: str) -> None:
    """InvalidValue for what is neither NAME=VALUE nor NAME."""
    if not entry.partition("=")[0] or "\0" in entry:
        raise InvalidValue(f"invalid environment variable: {entry!r}: write NAME=VALUE or NAME")


def check_directory(path: str) -> None:
    """InvalidValue for a working directory that is not an absolute path."""
    if not os.path.isabs(path):
        raise InvalidValue(f"the working directory {path!r} is not an absolute path")


def _written(count: int) -> str:
    """Bytes in the largest unit that they are a whole number of: 6m."""
    unit = ""
    for larger in _UNITS:
        if not count or count % 1024:
            break
        count, unit = count // 1024, larger
    return f"{count}{unit}"
