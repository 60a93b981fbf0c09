"""Platforms of images: what their names mean, and which of them run where which one is asked for.

The rules are those of github.com/containerd/platforms (database.go, compare.go), by which docker, buildkit and
containerd choose: several names for one architecture, a variant that goes without saying, and what runs older code.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

from runtime.errors import InvalidValue

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_SYSTEMS = ("linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "dragonfly", "solaris", "illumos", "aix")
_ARCHITECTURES = (
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64",
    "s390x", "wasm",
)  # fmt: skip

# uname(2) -> architecture and variant, where Go has another name for it.
_MACHINES = {
    "i386": ("386", ""), "i486": ("386", ""), "i586": ("386", ""), "i686": ("386", ""),
    "armv5tel": ("arm", "v5"), "armv5tejl": ("arm", "v5"), "armv6l": ("arm", "v6"), "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),  # a 64-bit processor that runs 32-bit programs for us
    "loongarch64": ("loong64", ""), "mips": ("mips", ""), "mips64": ("mips64", ""),
}  # fmt: skip


class Platform(NamedTuple):
    """As an index names it, all parts may be "" ; `features` are what it needs of the system beyond the ordinary.

    str() is as containerd's FormatAll: linux/arm/v7, linux(+FEATURE+FEATURE)/amd64.
    """

    os: str
    architecture: str
    variant: str = ""
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        needed = "".join(f"+{feature}" for feature in sorted(self.features))
        return "/".join(filter(None, (f"{self.os}({needed})" if needed else self.os, self.architecture, self.variant)))


def parse_platform(text: str) -> Platform:
    """OS[/ARCHITECTURE[/VARIANT]], or an architecture alone, as in linux/arm64/v8. InvalidValue."""
    parts = text.lower().split("/")
    if not all(map(_WORD.fullmatch, parts)) or len(parts) > 3:
        raise InvalidValue(f"invalid platform {text!r}: write OS/ARCHITECTURE, as in linux/arm64")
    own = host()
    found = normalized(Platform(own.os, parts[0]))
    if len(parts) > 1:
        if found.architecture in _ARCHITECTURES:
            raise InvalidValue(
                f"invalid platform {text!r}: {parts[0]} is an architecture; write OS/ARCHITECTURE, as in linux/arm64"
            )
        return normalized(Platform(parts[0], parts[1], "".join(parts[2:])))
    if normalized(Platform(parts[0], "")).os in _SYSTEMS:
        return normalized(own._replace(os=parts[0]))
    if found.architecture not in _ARCHITECTURES:
        raise InvalidValue(f"invalid platform {text!r}: it is no operating system and no architecture")
    return found


def host() -> Platform:
    """What this machine is."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    if architecture.startswith("mips") and sys.byteorder == "little":
        architecture += "le"
    return normalized(Platform("linux", architecture, variant))


def normalized(platform: Platform) -> Platform:
    """The one form of all names that mean the same."""
    system, architecture, variant = (part.lower() for part in platform[:3])
    match architecture:
        case "i386":
            architecture, variant = "386", ""
        case "x86_64" | "x86-64" | "amd64":
            architecture, variant = "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            architecture, variant = "arm64", "" if variant in ("8", "v8") else variant
        case "armhf":
            architecture, variant = "arm", "v7"
        case "armel":
            architecture, variant = "arm", "v6"
        case "arm":
            variant = variant or "v7"
            variant = f"v{variant}" if variant in ("5", "6", "7", "8") else variant
    return Platform({"": "linux", "macos": "darwin"}.get(system, system), architecture, variant, platform.features)


def runs(offered: Platform, wanted: Platform) -> bool:
    """Whether an image for `offered` is one for exactly `wanted`, which has to have the features that it needs."""
    offered, wanted = normalized(offered), normalized(wanted)
    return offered[:3] == wanted[:3] and set(offered.features) <= set(wanted.features)


def compatible(wanted: Platform) -> tuple[Platform, ...]:
    """What runs on `wanted`, best first: itself, and what is for its predecessors."""
    wanted = normalized(wanted)
    return tuple(
        wanted._replace(architecture=architecture, variant=variant)
        for architecture, variant in _predecessors(wanted.architecture, wanted.variant)
    )


def _predecessors(architecture: str, variant: str) -> Iterable[tuple[str, str]]:
    yield architecture, variant
    match architecture:
        case "amd64":
            yield from ((architecture, f"v{n}" if n > 1 else "") for n in _below(variant, 1))
            yield "386", ""
        case "arm":
            yield from ((architecture, f"v{n}") for n in _below(variant, 5))
        case "arm64":
            found = re.fullmatch(r"v([89])(?:\.([0-9]))?", variant or "v8")
            major, minor = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
            if major == 9:
                yield from ((architecture, f"v9.{n}" if n else "v9") for n in reversed(range(minor)))
                minor += 5  # Arm's v9.N has all of v8.N+5
                yield architecture, f"v8.{minor}"
            yield from ((architecture, f"v8.{n}" if n else "") for n in reversed(range(minor)))
            if found:
                yield from _predecessors("arm", "v8")


def _below(variant: str, lowest: int) -> Iterable[int]:
    """The numbers below that of `vN`, down to the lowest."""
    number = variant.removeprefix("v")
    return reversed(range(lowest, int(number))) if number.isdecimal() and len(number) < 3 else ()
