"""How much one archive may ask for, and how much of that it has used."""

from __future__ import annotations

from dataclasses import dataclass

from drivers.archive.errors import Refused


@dataclass(frozen=True)
class Limits:
    """Sizes are in bytes unless noted. An archive that goes over one of them is refused with an ArchiveError."""

    # The uncompressed archive, headers and padding with it; and what is written for it, with what its links have copied
    total: int = 32 << 30
    entries: int = 2_000_000  # members; different names, with the directories on the way to them
    names: int = 128 << 20  # all different names and the targets of symbolic links; a directory's counts once
    path: int = 4095  # a name, or the target of a link: PATH_MAX without its NUL
    depth: int = 1024  # directories in a name; each entry is looked up from the root
    looks: int = 100_000_000  # at directories on the way to names, each time that any is looked at
    metadata: int = 1 << 20  # the body of one pax or GNU long-name header; all global records
    xattrs: int = 256 << 10  # all extended attributes of one member, names and values
    padding: int = 16 << 20  # zeros after the end-of-archive mark
    ratio: int = 1100  # uncompressed bytes per compressed one; deflate cannot go beyond 1032
    memory: int = 256 << 20  # what an xz or zstd stream may make its decompressor allocate


DEFAULT = Limits()


class Spent:
    """What one archive has used of `limits`. Raises Refused when that is used up."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._looks = self._written = 0

    def look(self, names: int) -> None:
        self._looks += names
        if self._looks > self.limits.looks:
            raise Refused(f"with it are more than {self.limits.looks} looks at the names on the way to entries")

    def write(self, size: int) -> None:
        self._written += size
        if self._written > self.limits.total:
            raise Refused(f"with it what is written is over the {self.limits.total} bytes that are allowed in all")
