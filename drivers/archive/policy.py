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
_OPAQUE = b".wh..wh..opq"
# What is set of an archive, and read into one (drivers.diff); user.* besides.
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_KEPT = (b"security.capability", *map(os.fsencode, ACLS))
# Attributes by which a union file system tells whiteouts, opaque directories and redirects. In a layer's directory they
# would not be data but instructions to overlayfs, fuse-overlayfs or us, for example to show a host directory.
_MARKS = (b"trusted.overlay.", b"user.overlay.", b"trusted.unionfs.", b"user.unionfs.", b"user.fuseoverlayfs.")


@dataclass(frozen=True, slots=True)
class Step:
    """An entry admitted. `path` is where it goes, or for a whiteout what it hides (`opaque`: what is in it)."""

    path: Path
    whiteout: bool = False
    opaque: bool = False
    target: Path = ()  # of a hard link


def admit(entry: Entry, limits: Limits) -> Step:
    """The step that `entry` asks for. ArchiveError when it may not."""
    path = _path(entry, entry.name, "name", limits)
    if path and path[-1].startswith(_WHITEOUT):
        return _whiteout(entry, path)
    if not path and entry.kind is not Kind.DIRECTORY:
        raise entry.refuse("only a directory can be the root")
    if entry.kind is Kind.HARDLINK:
        target = _path(entry, entry.linkname, "hard link's target", limits)
        if not target or target[: len(path)] == path:  # it would be removed before it is linked to
            what = "the root" if not target else "itself" if target == path else "a file inside itself"
            raise entry.refuse(f"it is a hard link to {what}")
        if target[-1].startswith(_WHITEOUT):
            raise entry.refuse(f"it is a hard link to the whiteout {shown(entry.linkname)}")
        return Step(path, target=target)
    if entry.kind is Kind.SYMLINK and not 0 < len(entry.linkname) <= limits.path:
        raise entry.refuse(f"its target is {len(entry.linkname)} bytes long, 1 to {limits.path} are allowed")
    if entry.kind is Kind.SYMLINK and b"\0" in entry.linkname:
        raise entry.refuse("its target contains a NUL")
    if entry.kind is Kind.CHAR and (entry.major, entry.minor) == (0, 0):
        raise entry.refuse("it is device 0:0, overlayfs's whiteout; archive the mount and not its upper directory")
    if entry.kind in (Kind.CHAR, Kind.BLOCK) and not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
        raise entry.refuse(f"it is device {entry.major}:{entry.minor}, a number that Linux does not have")
    return Step(path)


def _path(entry: Entry, name: bytes, what: str, limits: Limits) -> Path:
    """`name` in components, `./` and doubled slashes dropped."""
    said = "" if what == "name" else f" {shown(name)}"
    if not name:
        raise entry.refuse(f"its {what} is empty")
    if name.startswith(b"/"):
        raise entry.refuse(f"its {what}{said} is absolute; make the archive with tar -C DIRECTORY -c .")
    if len(name) > limits.path:
        raise entry.refuse(f"its {what} is {len(name)} bytes long, {limits.path} are allowed")
    if b"\0" in name:
        raise entry.refuse(f"its {what} contains a NUL")
    path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if len(path) > limits.depth:
        raise entry.refuse(f"its {what} is {len(path)} directories deep, {limits.depth} are allowed")
    for part in path:
        if part == b"..":
            raise entry.refuse(f"its {what}{said} contains '..' and could leave the root; make the archive without it")
        # A whiteout is no file here: what it hides has to be a possible name.
        if len(part) > _NAME_MAX + (len(_WHITEOUT) if part is path[-1] and part.startswith(_WHITEOUT) else 0):
            raise entry.refuse(f"a part of its {what} is {len(part)} bytes long, {_NAME_MAX} are allowed")
    if any(part.startswith(_WHITEOUT) for part in path[:-1]):
        raise entry.refuse(f"its {what}{said} goes through a '.wh.' name, which only whiteouts have")
    return path


def _whiteout(entry: Entry, path: Path) -> Step:
    """An OCI whiteout (image-spec layer.md, "Whiteouts"). AUFS makes them hard links of one file, so both kinds do."""
    if entry.kind not in (Kind.FILE, Kind.HARDLINK) or entry.size:
        raise entry.refuse("a '.wh.' name is a whiteout's, and a whiteout is an empty file")
    if path[-1] == _OPAQUE:
        return Step(path[:-1], opaque=True)
    hidden = path[-1].removeprefix(_WHITEOUT)
    if hidden.startswith(_WHITEOUT):
        raise entry.refuse("it is AUFS's own bookkeeping; leave it out (tar --exclude='.wh..wh.*', but '.wh..wh..opq')")
    if hidden in (b"", b".", b".."):
        raise entry.refuse("it is a whiteout of no name")
    return Step((*path[:-1], hidden), whiteout=True)


def is_mark(name: bytes) -> bool:
    """Whether an extended attribute is a mark of a union file system, and says nothing of the file."""
    return name.startswith(_MARKS)


def is_kept(name: bytes) -> bool:
    """Whether an extended attribute belongs to a file in a layer, and not to the machine that it was on."""
    return name in _KEPT or (name.startswith(b"user.") and not is_mark(name))


def kept_xattrs(entry: Entry) -> dict[str, bytes]:
    """The extended attributes of `entry` that are set. ArchiveError for a mark of an overlay file system."""
    kept = {}
    for name, value in entry.xattrs.items():
        if is_mark(name):
            raise entry.refuse(f"its extended attribute {shown(name)} is a mark of an overlay file system")
        if is_kept(name):
            if b"\0" in name or not len(b"user.") < len(name) <= _NAME_MAX:
                raise entry.refuse(f"its extended attribute {shown(name)} has no possible name")
            if os.fsdecode(name) in ACLS and not acl.is_valid(value):
                raise entry.refuse(f"its extended attribute {shown(name)} is no access control list")
            kept[os.fsdecode(name)] = value
    return kept
