"""Mount options in the three dialects, as one plan. Text in, values out: no file is touched.

    lower:upper                           bottom to top, the last writable
    br=/up=rw:/low=ro  (br:, dirs=)       AUFS: top first, the first writable
    lowerdir=a:b,upperdir=u,workdir=w     overlayfs: lowerdir top first, upperdir writable

A backslash takes the meaning from the `:`, `=`, `,` or backslash after it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

Permission = Literal["rw", "ro", "rr"]
Transport = Literal["auto", "direct", "pyfuse3"]
Passthrough = Literal["programs", "all", "none"]
Xino = Literal["auto", "on", "off"]

PERMISSIONS = ("rw", "ro", "rr")
TRANSPORTS = ("auto", "direct", "pyfuse3")
PASSTHROUGH = ("programs", "all", "none")
XINO = ("auto", "on", "off")

# Bytes of a string that fsconfig(2) takes, with its NUL.
_LONGEST_STRING = 256
# What reads the table of mounts takes the type for a word, and mount(8) for a part of a program's name.
_SUBTYPE = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")

MOST_SPIN = 10_000  # microseconds: beyond that a server that waits would show as load

# aufs(5): an ro or rr branch may hold whiteouts. Ours are always honoured, so it is accepted and changes nothing.
ATTRIBUTES = ("wh",)


class OptionError(ValueError):
    """The command line cannot be understood; the text is a sentence that names the word at fault."""


@dataclass(frozen=True)
class BranchSpec:
    path: str
    permission: Permission


@dataclass(frozen=True)
class MountPlan:
    """What to mount. `branches` has the top first; `flags` is a subset of FLAGS."""

    branches: tuple[BranchSpec, ...]
    flags: frozenset[str] = frozenset()
    allow_other: bool = False
    volatile: bool = False  # overlayfs's word: copy-ups do not wait for the disk
    transport: Transport = "auto"
    passthrough: Passthrough = "programs"  # lower files that the kernel reads by itself, and does not see copied up
    xino: Xino = "auto"  # overlayfs's word: how inode numbers tell several file systems apart
    spin: int = 200  # microseconds to poll for the next request before sleeping; 0, not at all
    workdir: str | None = None  # overlayfs's; must exist, is not used: the work area lies in the writable branch
    fsname: str = "unionfs"  # the source that the table of mounts shows
    subtype: str = "unionfs"  # and the type, after "fuse."

    @property
    def read_only(self) -> bool:
        return "ro" in self.flags


# mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS": those that restrict, and the words that take them back.
FLAGS = (
    "ro", "nosuid", "nodev", "noexec", "sync", "dirsync", "nosymfollow", "noatime", "nodiratime", "relatime",
    "strictatime",
)  # fmt: skip
_TAKES_BACK = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "symfollow": "nosymfollow",
    "atime": "noatime", "diratime": "nodiratime", "norelatime": "relatime", "nostrictatime": "strictatime",
}  # fmt: skip

_ACCESS = {"noatime", "relatime", "strictatime"}  # each says all, so the last one counts

# Meant for fstab(5) and mount(8) themselves (who adds what `user` and its like imply), or always the case here.
_IGNORED = {
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group", "silent", "loud",
    "nomand", "noiversion", "nolazytime", "default_permissions", "udba=none",
}

_FOR_MOUNT8 = ("comment", "user", "helper", "uhelper")  # with a value

_BRANCHES = ("br", "dirs", "lowerdir", "upperdir")
_SWITCHES = ("allow_other", "volatile")

# What mount(8) has and no union can do.
_REFUSED = {
    "lazytime": "times are kept by the branches' file systems: mount those with it",
    "iversion": "FUSE has no such counter",
    "mand": "Linux has no mandatory locks any more",
    "remount": "that is for mount(8): 'mount -o remount,… MOUNTPOINT'",
}


def parse(
    spec: str | None, options: Sequence[str] = (), *, rw_is_default: bool = False, sloppy: bool = False
) -> MountPlan:
    """The plan of `spec` (the first dialect, or None) and of `-o` values, each a comma-separated list.

    With no writable branch the union is read-only; with the option `ro` no branch is writable. `rw` asks for a writable
    branch, but for `rw_is_default`: mount(8) always says it. What is unknown is left out if `sloppy` (mount(8), -s).
    Raises OptionError.
    """
    read = _Reading(spec, options, sloppy=sloppy)
    branches = read.branches()
    if branches is None:
        raise OptionError("no branches: give LOWER:UPPER, or -o br=…, or -o lowerdir=…,upperdir=…")
    if "ro" in read.flags:
        branches = tuple(replace(b, permission="ro") if b.permission == "rw" else b for b in branches)
    else:
        _check_writable(branches, read.writable_wanted and not rw_is_default)
        if branches[0].permission != "rw":
            read.flags.add("ro")
    workdir = read.overlay.get("workdir")
    return replace(
        MountPlan(branches, frozenset(read.flags), workdir=None if workdir is None else _unescape(workdir)),
        **read.given,
    )


@dataclass(frozen=True)
class Change:
    """What `mount -o remount` asks for: all the flags that are to be, and what else is said, by fields of MountPlan."""

    flags: frozenset[str]
    given: dict[str, Any]
    branches: tuple[BranchSpec, ...] | None


def parse_change(spec: str | None, options: Sequence[str], *, sloppy: bool = False) -> Change:
    """As parse(), of a union that is mounted: its branches need not be said again. Raises OptionError."""
    read = _Reading(spec, options, sloppy=sloppy)
    return Change(frozenset(read.flags), read.given, read.branches())


class _Reading:
    """The words of `-o` values, one after the other: what comes later counts. `given` has fields of MountPlan."""

    def __init__(self, spec: str | None, options: Sequence[str], *, sloppy: bool) -> None:
        self.flags: set[str] = set()
        self.given: dict[str, Any] = {}
        self.writable_wanted = False
        self.overlay: dict[str, str] = {}
        self._listed: list[tuple[str, tuple[BranchSpec, ...]]] = []
        if spec is not None:
            self._listed.append((spec, _bottom_to_top(spec)))
        for option in (word for text in options for word in split(text)):
            if not (self._flag(option) or self._value(option, *_key_value(option)) or sloppy):
                raise OptionError(
                    f"unknown option '{option}': known are br, dirs, lowerdir, upperdir, workdir, udba, transport,"
                    " spin, passthrough, posix, volatile, xino, fsname, subtype, allow_other and those of mount(8)"
                )

    def branches(self) -> tuple[BranchSpec, ...] | None:
        """Top first; None where they are not said."""
        listed = [*self._listed, *([("lowerdir", _overlay(self.overlay))] if self.overlay else [])]
        if len(listed) > 1:
            raise OptionError(
                f"branches are given twice, by '{listed[0][0]}' and by '{listed[1][0]}': choose one form"
            )
        return listed[0][1] if listed else None

    def _flag(self, option: str) -> bool:
        if option in FLAGS:
            if option in _ACCESS:
                self.flags -= _ACCESS
            self.flags.add(option)
        elif option in _TAKES_BACK:
            self.flags.discard(_TAKES_BACK[option])
            self.writable_wanted |= option == "rw"
        elif option in _SWITCHES:
            self.given[option] = True
        elif option == "posix":
            self.given["passthrough"] = "none"
        elif option in _REFUSED:
            raise OptionError(f"'{option}' cannot be had: {_REFUSED[option]}")
        else:
            return option in _IGNORED
        return True

    def _value(self, option: str, key: str, value: str | None) -> bool:
        if key in ("br", "dirs") and value is not None:
            self._listed.append((option, _aufs(value)))
        elif key in ("lowerdir", "upperdir", "workdir") and value:
            if key in self.overlay:
                raise OptionError(f"{key} is given twice: join lower directories with ':'")
            self.overlay[key] = value
        elif key == "transport":
            self.given[key] = _one_of(TRANSPORTS, key, value, option)
        elif key == "passthrough":
            self.given[key] = _one_of(PASSTHROUGH, key, value, option)
        elif key == "xino":
            self.given[key] = _one_of(XINO, key, value, option)
        elif key == "spin":
            self.given[key] = _spin(value, option)
        elif key == "fsname" and option[len(key) :][:1] == "=":
            self.given[key] = _shown(value, option)
        elif key == "subtype":
            self.given[key] = _subtype(value, option)
        elif key == "udba" and value != "none":
            raise OptionError(f"{option}: only udba=none is available, the mount owns its branches")
        else:
            return key.startswith(("x-", "X-")) or key in _FOR_MOUNT8
        return True


def split(text: str) -> list[str]:
    """The options of one `-o` value."""
    return [word for word in _split(text, ",") if word]


def shown_as(source: str, subtype: str) -> list[str]:
    """Options that have the table of mounts show these, as far as it can."""
    wanted = []
    if 0 < len(os.fsencode(source)) < _LONGEST_STRING:
        wanted.append("fsname=" + re.sub(r"([\\,])", r"\\\1", source))
    if _is_subtype(subtype):
        wanted.append(f"subtype={subtype}")
    return wanted


def names_branches(options: Sequence[str]) -> bool:
    """Whether the `-o` values say what the branches are, so that a source beside them is but a name."""
    return any(_key_value(word)[0] in _BRANCHES for text in options for word in split(text))


def _check_writable(branches: Sequence[BranchSpec], wanted: bool) -> None:
    for branch in branches[1:]:
        if branch.permission == "rw":
            raise OptionError(f"the writable branch '{branch.path}' is not on top: only the top one can be written to")
    if wanted and branches[0].permission != "rw":
        raise OptionError("rw is asked for, but no branch is writable: mark the top one =rw")


def _one_of(words: Sequence[str], key: str, value: str | None, option: str) -> str:
    if value is None or value not in words:
        raise OptionError(f"{option}: choose {key}={', '.join(words[:-1])} or {words[-1]}")
    return value


def _spin(value: str | None, option: str) -> int:
    if not value or len(value) > len(str(MOST_SPIN)) or not value.isdecimal() or int(value) > MOST_SPIN:
        raise OptionError(f"{option}: spin takes microseconds, from 0 (off) to {MOST_SPIN}")
    return int(value)


def _shown(value: str | None, option: str) -> str:
    """Any text: the kernel escapes what would be mistaken in its tables (mangle(), fs/proc_namespace.c)."""
    text = _unescape(value or "")
    if not 0 < len(os.fsencode(text)) < _LONGEST_STRING:
        raise OptionError(f"{option[:60]!r}: fsname takes from 1 to {_LONGEST_STRING - 1} bytes")
    return text


def _subtype(value: str | None, option: str) -> str:
    text = _unescape(value or "")
    if not _is_subtype(text):
        raise OptionError(f"{option[:60]!r}: subtype takes a word of letters, digits, '.', '_', '+' and '-'")
    return text


def _is_subtype(text: str) -> bool:
    return _SUBTYPE.fullmatch(text) is not None and len(text) < _LONGEST_STRING - len("fuse.")


def _bottom_to_top(text: str) -> tuple[BranchSpec, ...]:
    return _branches(_split(text, ":")[::-1], text)


def _aufs(text: str) -> tuple[BranchSpec, ...]:
    return _branches(_split(text, ":"), text)


def _overlay(given: dict[str, str]) -> tuple[BranchSpec, ...]:
    if "lowerdir" not in given:
        raise OptionError("upperdir and workdir need lowerdir=… as well")
    lower = tuple(BranchSpec(_path(word, given["lowerdir"]), "ro") for word in _split(given["lowerdir"], ":"))
    if "upperdir" in given:
        return (BranchSpec(_unescape(given["upperdir"]), "rw"), *lower)
    return lower


def _branches(words: Sequence[str], whole: str) -> tuple[BranchSpec, ...]:
    """`PATH[=PERMISSION]` each, top first; without a permission the top is writable and the others are not."""
    found = []
    for position, word in enumerate(words):
        *path, permission = _split(word, "=")
        if not path:
            path, permission = [permission], "ro" if position else "rw"
        found.append(BranchSpec(_path("=".join(path), whole), _permission(permission, word)))
    return tuple(found)


def _path(word: str, whole: str) -> str:
    if not word:
        raise OptionError(f"empty branch in '{whole}': write a directory between the colons")
    return _unescape(word)


def _permission(text: str, branch: str) -> Permission:
    permission, *attributes = text.split("+")
    if permission not in PERMISSIONS:
        raise OptionError(
            f"unknown permission '{permission}' in '{branch}': known are {', '.join(PERMISSIONS)}"
            r" (write \= for an equals sign in a path)"
        )
    for attribute in attributes:
        if attribute not in ATTRIBUTES or permission == "rw":
            raise OptionError(
                f"unknown attribute '+{attribute}' in '{branch}': known are ro+{', ro+'.join(ATTRIBUTES)}"
                f" and rr+{', rr+'.join(ATTRIBUTES)}"
            )
    return cast(Permission, permission)


def _key_value(option: str) -> tuple[str, str | None]:
    """`key=value`, or AUFS's `br:value`."""
    ends = [at for at in (option.find("="), option.find(":")) if at >= 0]
    if not ends:
        return option, None
    return option[: min(ends)], option[min(ends) + 1 :]


def _split(text: str, separator: str) -> list[str]:
    """Split at the separators that no backslash precedes; the backslashes stay."""
    parts, start, at = [], 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == separator:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    parts.append(text[start:])
    return parts


def _unescape(text: str) -> str:
    out, characters = [], iter(text)
    for character in characters:
        out.append(next(characters, "\\") if character == "\\" else character)
    return "".join(out)
