"""Directory trees as values: build one, read one back, and say in words where two differ.

A tree is a dict from name to entry; `"text"` is short for `File("text")` and a dict for `Dir(dict)`:

    build(path, {"etc": {"motd": "hello\\n", "link": Symlink("motd")}, "bin": Dir({}, mode=0o1777)})
    assert_tree(path, {"etc": {"motd": "hello\\n", "link": Symlink("motd")}, "bin": {}})

Names and paths are str with surrogate escapes, so any bytes can be a name. A field that is None in an expected tree is
not compared. What `read` returns compares every field of every entry.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias

from unionfs.union import form

ACL_XATTRS = ("system.posix_acl_access", "system.posix_acl_default")


@dataclass(frozen=True, kw_only=True)
class _Owned:
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class File(_Owned):
    """`holes` is a size in bytes: the content is followed by a hole up to it."""

    content: bytes | str = b""
    holes: int = field(default=0, kw_only=True)

    @property
    def data(self) -> bytes:
        raw = self.content.encode() if isinstance(self.content, str) else self.content
        return raw.ljust(self.holes, b"\0")


@dataclass(frozen=True)
class Dir(_Owned):
    entries: Mapping[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True)
class Symlink(_Owned):
    target: str = ""


@dataclass(frozen=True)
class Special(_Owned):
    """A fifo, socket or device: `type` is stat.S_IFIFO, S_IFSOCK, S_IFCHR or S_IFBLK."""

    type: int = stat.S_IFIFO
    rdev: int = 0


@dataclass(frozen=True)
class HardLink:
    """Another name for the file at `to`: a path as a symbolic link would have it, that is built before this one."""

    to: str = ""


Entry: TypeAlias = "str | bytes | Mapping[str, Entry] | File | Dir | Symlink | Special | HardLink"
Tree: TypeAlias = Mapping[str, Entry]

OVERLAY_WHITEOUT = Special(type=stat.S_IFCHR, rdev=os.makedev(0, 0), mode=0)


def whiteout_of(name: str) -> str:
    return os.fsdecode(form.whiteout_of(os.fsencode(name)))


def entry(value: Entry) -> File | Dir | Symlink | Special | HardLink:
    """The long form of an entry."""
    if isinstance(value, (str, bytes)):
        return File(value)
    return Dir(value) if isinstance(value, Mapping) else value


def build(path: str, tree: Tree) -> str:
    """Make `tree` in the directory `path` (created if missing) and return path; entries that exist are an error."""
    os.makedirs(path, exist_ok=True)
    for name, value in tree.items():
        _build(os.path.join(path, name), entry(value))
    return path


def _build(path: str, node: File | Dir | Symlink | Special | HardLink) -> None:
    match node:
        case HardLink(to):
            os.link(os.path.join(os.path.dirname(path), to), path, follow_symlinks=False)
            return
        case File():
            with open(path, "xb") as out:
                out.write(node.data.rstrip(b"\0") if node.holes else node.data)
                if node.holes:
                    out.truncate(len(node.data))
        case Dir():
            os.mkdir(path)
            build(path, node.entries)
        case Symlink(target=target):
            os.symlink(target, path)
        case Special(type=kind, rdev=rdev):
            if kind == stat.S_IFSOCK:
                _bind_socket(path)
            else:
                os.mknod(path, kind | 0o644, rdev)
    _apply(path, node)


def _bind_socket(path: str) -> None:
    """Bind through the parent's descriptor: sun_path holds 107 bytes, and temporary directories are longer."""
    parent = os.open(os.path.dirname(path), os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{parent}/{os.path.basename(path)}")
    finally:
        os.close(parent)


def _apply(path: str, node: _Owned) -> None:
    """Owner before mode (chown clears set-id bits) and before xattrs (it clears capabilities); times last."""
    if node.uid is not None or node.gid is not None:
        keep = -1
        os.chown(path, keep if node.uid is None else node.uid, keep if node.gid is None else node.gid,
                 follow_symlinks=False)
    if not isinstance(node, Symlink):
        mode = node.mode if node.mode is not None else 0o755 if isinstance(node, Dir) else 0o644
        if stat.S_IMODE(os.lstat(path).st_mode) != mode:
            os.chmod(path, mode)
    for name, value in (node.xattrs or {}).items():
        os.setxattr(path, name, value, follow_symlinks=False)
    if node.mtime_ns is not None:
        os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


@dataclass(frozen=True)
class Found:
    """One entry as read: `type` is its S_IFMT bits; `links` are all its names in the tree, () for a single one.

    `nlink` and `mtime_ns` are None for directories: neither is defined by what is in a union's tree.
    """

    type: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[str, bytes] | None = None
    content: bytes | None = None
    target: str | None = None
    rdev: int | None = None
    nlink: int | None = None
    links: tuple[str, ...] | None = None


def read(path: str, *, times: bool = True) -> dict[str, Found]:
    """Every entry below `path` by its relative path; the root itself is ".". Without `times` mtimes are left out."""
    found = {".": _found(path, times)}
    names: dict[tuple[int, int], list[str]] = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        for name in sorted(os.listdir(os.path.join(path, directory))):
            relative = os.path.join(directory, name)
            full = os.path.join(path, relative)
            info = os.lstat(full)
            found[relative] = _found(full, times)
            if stat.S_ISDIR(info.st_mode):
                pending.append(relative)
            else:
                names.setdefault((info.st_dev, info.st_ino), []).append(relative)
    for group in names.values():
        for name in group if len(group) > 1 else ():
            found[name] = replace(found[name], links=tuple(sorted(group)))
    return dict(sorted(found.items()))


def _found(path: str, times: bool) -> Found:
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    directory = kind == stat.S_IFDIR
    content = None
    if kind == stat.S_IFREG:
        with open(path, "rb") as source:
            content = source.read()
    return Found(
        type=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        mtime_ns=None if directory or not times else info.st_mtime_ns,
        xattrs=xattrs(path),
        content=content,
        target=os.readlink(path) if kind == stat.S_IFLNK else None,
        rdev=info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None,
        nlink=None if directory else info.st_nlink,
        links=(),
    )


def xattrs(path: str) -> dict[str, bytes]:
    """All extended attributes of `path` itself, POSIX ACLs among them; a security module's labels are not ours."""
    found = {}
    for name in [*os.listxattr(path, follow_symlinks=False), *ACL_XATTRS]:
        if name in ("security.selinux", "security.SMACK64") or name in found:
            continue
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError:
            continue  # an ACL that is not set (ENODATA) or that cannot be (EOPNOTSUPP, on a symbolic link)
    return dict(sorted(found.items()))


def expected(tree: Tree) -> dict[str, Found]:
    """`tree` in the form that `read` gives, without the root; what the tree does not say is None."""
    flat: dict[str, Found] = {}
    _expect("", tree, flat)
    groups: dict[str, list[str]] = {}
    for path, to in [(p, f.target) for p, f in flat.items() if f.type == -1]:
        groups.setdefault(str(to), [str(to)]).append(path)
    for to, names in groups.items():
        for name in names:
            flat[name] = replace(flat[to], links=tuple(sorted(names)))
    return dict(sorted(flat.items()))


def _expect(prefix: str, tree: Tree, flat: dict[str, Found]) -> None:
    for name, value in tree.items():
        path = os.path.join(prefix, name)
        node = entry(value)
        if isinstance(node, HardLink):
            flat[path] = Found(-1, target=os.path.normpath(os.path.join(prefix, node.to)))
            continue
        kinds = {File: stat.S_IFREG, Dir: stat.S_IFDIR, Symlink: stat.S_IFLNK}
        flat[path] = Found(
            type=node.type if isinstance(node, Special) else kinds[type(node)],
            mode=node.mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns, xattrs=node.xattrs,
            content=node.data if isinstance(node, File) else None,
            target=node.target if isinstance(node, Symlink) else None,
            rdev=node.rdev if isinstance(node, Special) and node.type in (stat.S_IFCHR, stat.S_IFBLK) else None,
        )
        if isinstance(node, Dir):
            _expect(path, node.entries, flat)


def diff(want: Mapping[str, Found], got: Mapping[str, Found]) -> list[str]:
    """What is missing, unexpected or different in `got`, a line each; fields that are None in `want` are free."""
    lines = [f"missing: {path}" for path in want if path not in got]
    lines += [f"unexpected: {path} {_show('type', got[path].type)}" for path in got if path not in want]
    for path in want.keys() & got.keys():
        for key in (f.name for f in fields(Found)):
            expectation, value = getattr(want[path], key), getattr(got[path], key)
            if expectation is not None and expectation != value:
                lines.append(f"{path}: {key} is {_show(key, value)}, expected {_show(key, expectation)}")
    return sorted(lines)


def _show(key: str, value: object) -> str:
    if isinstance(value, int):
        return oct(value) if key in ("mode", "type") else str(value)
    if isinstance(value, bytes) and len(value) > 60:
        return f"{value[:30]!r}…{value[-20:]!r} ({len(value)} bytes)"
    return repr(value)


def assert_tree(path: str, tree: Tree) -> None:
    """Fail, listing the differences, unless exactly `tree` is in the directory `path`."""
    found = read(path)
    del found["."]
    differences = diff(expected(tree), found)
    assert not differences, "\n".join([f"{path} is not as expected:", *differences])


def assert_same(want: Mapping[str, Found], got: Mapping[str, Found], context: str = "") -> None:
    """Fail, listing the differences, unless two read trees are equal."""
    differences = diff(want, got)
    assert not differences, "\n".join([f"the trees differ {context}".rstrip() + ":", *differences])
