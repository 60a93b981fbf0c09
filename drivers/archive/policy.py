"""What an entry may ask for, decided from the entry alone: which path, which whiteout, which attributes.

Pure: bytes in, values or an ArchiveError out. The reasons for each decision are in the package's docstring.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from drivers.archive import acl
from drivers.archive.errors import shown
from drivers.archive.limits import Limits
from drivers.archive.reader import Entry, Kind

Path = tuple[bytes, ...]  # components below the root, none of them empty, "." or ".."; () is the root itself

_NAME_MAX = 255
_WHITEOUT = b".wh."
_OWN = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_PSEUDO_LINKS = b".wh..wh.plnk"
# What is set from an archive, and read into one (drivers.diff); user.* besides.
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_KEPT = (b"security.capability", *map(os.fsencode, ACLS))
# Attributes by which a union file system tells whiteouts, opaque directories and redirects. In a layer's directory they
# would not be data but instructions to overlayfs, fuse-overlayfs or us, for example to show a host directory. The last
# is where fuse-overlayfs and containers/storage keep the owner and mode of a file that they may not change.
_MARKS = (
    b"trusted.overlay.", b"user.overlay.", b"trusted.unionfs.", b"user.unionfs.", b"user.fuseoverlayfs.",
    b"user.containers.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """An entry admitted. `path` is where it goes, or for a whiteout what it hides (`opaque`: what is in it)."""

    path: Path
    whiteout: bool = False
    opaque: bool = False
    target: Path = ()  # of a hard link
    pseudo: bytes = b""  # a file that goes nowhere but is kept under this name; of a hard link, what it leads to


def admit(entry: Entry, limits: Limits) -> Step | None:
    """The step that `entry` asks for, None when it is left out. ArchiveError when it may not ask for that."""
    path = _path(entry, entry.name, "name", limits)
    if path and path[0].startswith(_OWN) and path != (_OPAQUE,):
        return _own(entry, path)
    if path and path[-1].startswith(_WHITEOUT):
        return _whiteout(entry, path)
    if not path and entry.kind is not Kind.DIRECTORY:
        raise entry.refuse("only a directory can be the root")
    if entry.kind is Kind.HARDLINK:
        target = _path(entry, entry.linkname, "hard link's target", limits)
        if target[:-1] == (_PSEUDO_LINKS,) and not target[-1].startswith(_WHITEOUT):
            return Step(path, pseudo=target[-1])
        if not target or target[: len(path)] == path:  # it would be removed before it is linked to
            what = "the root" if not target else "itself" if target == path else "a file inside itself"
            raise entry.refuse(f"it is a hard link to {what}")
        if any(part.startswith(_WHITEOUT) for part in target):
            raise entry.refuse(f"it is a hard link to the whiteout {shown(entry.linkname)}")
        return Step(path, target=target)
    if entry.kind is Kind.SYMLINK and not 0 < len(entry.linkname) <= limits.path:
        raise entry.refuse(f"its target is {len(entry.linkname)} bytes long, 1 to {limits.path} are allowed")
    if entry.kind is Kind.SYMLINK and b"\0" in entry.linkname:
        raise entry.refuse("its target contains a NUL")
    if entry.kind is Kind.CHAR and (entry.major, entry.minor) == (0, 0):
        return Step(path, whiteout=True)  # as overlayfs takes it, in an image that has another engine's layers
    if entry.kind in (Kind.CHAR, Kind.BLOCK) and not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
        raise entry.refuse(f"it is device {entry.major}:{entry.minor}, a number that Linux does not have")
    return Step(path)


def _path(entry: Entry, name: bytes, what: str, limits: Limits) -> Path:
    """`name` in components, relative to the root however it begins; `./`, `..` and doubled slashes resolved as Go's
    path.Clean resolves them, which docker and containerd go by: without a look at what is there."""
    said = "" if what == "name" else f" {shown(name)}"
    if len(name) > limits.path:
        raise entry.refuse(f"its {what} is {len(name)} bytes long, {limits.path} are allowed")
    if b"\0" in name:
        raise entry.refuse(f"its {what} contains a NUL")
    path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in path:
        path = _without_climbs(entry, path, f"{what}{said}")
    if len(path) > limits.depth:
        raise entry.refuse(f"its {what} is {len(path)} directories deep, {limits.depth} are allowed")
    for part in path:
        # A whiteout is not a file here: what it hides has to be a possible name.
        if len(part) > _NAME_MAX + (len(_WHITEOUT) if part is path[-1] and part.startswith(_WHITEOUT) else 0):
            raise entry.refuse(f"a part of its {what} is {len(part)} bytes long, {_NAME_MAX} are allowed")
    if _WHITEOUT in name and any(part.startswith(_WHITEOUT) for part in path[:-1]) and not path[0].startswith(_OWN):
        raise entry.refuse(f"its {what}{said} goes through a '.wh.' name, which only whiteouts have")
    return path


def _without_climbs(entry: Entry, path: Path, what: str) -> Path:
    found: list[bytes] = []
    for part in path:
        if part != b"..":
            found.append(part)
        elif found:
            found.pop()
        else:
            why = "leads above the root by its '..'; make the archive with tar -C DIRECTORY -c ."
            raise entry.refuse(f"its {what} {why}")
    return tuple(found)


def _whiteout(entry: Entry, path: Path) -> Step | None:
    """An OCI whiteout (image-spec layer.md, "Whiteouts"), known by its name alone, as everywhere: it is an empty file,
    or with AUFS a hard link to one."""
    if path[-1] == _OPAQUE:
        return Step(path[:-1], opaque=True)
    hidden = path[-1].removeprefix(_WHITEOUT)
    if hidden.startswith(_WHITEOUT):
        return None  # a whiteout of a name that nothing can have
    if hidden in (b"", b".", b".."):
        raise entry.refuse("it is a whiteout of no name")
    return Step((*path[:-1], hidden), whiteout=True)


def _own(entry: Entry, path: Path) -> Step | None:
    """What AUFS keeps in its root for itself, as layers of 2013 have it: none of it belongs to the tree, but hard links
    that AUFS could not make otherwise lead to the files of `.wh..wh.plnk/` (moby pkg/archive/diff.go)."""
    if path[:-1] == (_PSEUDO_LINKS,) and entry.kind is Kind.FILE and not path[-1].startswith(_WHITEOUT):
        return Step((), pseudo=path[-1])
    return None


def is_mark(name: bytes) -> bool:
    """Whether an extended attribute is a mark of a union file system, and says nothing of the file."""
    return name.startswith(_MARKS)


def is_kept(name: bytes) -> bool:
    """Whether an extended attribute belongs to a file in a layer, and not to the machine that it was on."""
    return name in _KEPT or (name.startswith(b"user.") and not is_mark(name))


def kept_xattrs(entry: Entry) -> dict[str, bytes]:
    """The extended attributes of `entry` that are set: those that belong to it, and that its kind can have."""
    kept = {}
    for name, value in entry.xattrs.items():
        if is_kept(name) and not _is_beyond(entry.kind, name):
            if b"\0" in name or not len(b"user.") < len(name) <= _NAME_MAX:
                raise entry.refuse(f"its extended attribute {shown(name)} has no possible name")
            if os.fsdecode(name) in ACLS and not acl.is_valid(value):
                raise entry.refuse(f"its extended attribute {shown(name)} is not an access control list")
            kept[os.fsdecode(name)] = value
    return kept


def _is_beyond(kind: Kind, name: bytes) -> bool:
    """Whether Linux refuses such an attribute to what is not a file or directory (xattr(7), acl(5))."""
    if name.startswith(b"user."):
        return kind not in (Kind.FILE, Kind.DIRECTORY)
    access, default = map(os.fsencode, ACLS)
    return (name == access and kind is Kind.SYMLINK) or (name == default and kind is not Kind.DIRECTORY)
