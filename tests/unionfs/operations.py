"""Random operations, each a value, done to one of two directories at a time, and what they may give."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.mounting import Union
from tests.trees import ACL_XATTRS, Dir, Entry, File, Special, Symlink, assert_same, read, whiteout_of
from unionfs.linux import consts, files

SEEDS = [int(seed) for seed in os.environ.get("FUSE_AUFS_SEEDS", "1,2,3").split(",")]

SHORT = ("a", "b", "c", "d")
NAMES = ("a", "b", "c", 127 * "ä" + "d")  # 255 bytes
XATTRS = ("user.one", "user.two", "trusted.three")
ACL = bytes.fromhex(
    "0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000000ffffffff"
)


class Operation(NamedTuple):
    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}{self.arguments!r}"


class Side:
    """One of the two directories, with the descriptors that the sequence holds open on it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.held: dict[int, int] = {}

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def close(self) -> None:
        for fd in self.held.values():
            os.close(fd)
        self.held.clear()


def describe(info: os.stat_result) -> tuple[Any, ...]:
    """What must agree of a stat: not times and numbers, and of a directory neither size nor link count."""
    mode = info.st_mode
    if stat.S_ISDIR(mode):
        return (oct(mode), info.st_uid, info.st_gid)
    return (oct(mode), info.st_uid, info.st_gid, info.st_nlink, info.st_size, info.st_rdev)


def apply(side: Side, operation: Operation) -> object:
    """The operation's result on this side, an errno's name when it failed."""
    try:
        return getattr(Doing, operation.name)(side, *operation.arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Doing:
    """How each operation is done; the names are those of `Operation`s."""

    @staticmethod
    def write(side: Side, path: str, flags: int, offset: int, byte: int, size: int) -> object:
        fd = os.open(side.path(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o640)
        try:
            return os.pwrite(fd, bytes([byte]) * size, offset)
        finally:
            os.close(fd)

    @staticmethod
    def read(side: Side, path: str) -> object:
        fd = os.open(side.path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(fd, 1 << 20)
        finally:
            os.close(fd)

    @staticmethod
    def truncate(side: Side, path: str, size: int) -> None:
        os.truncate(side.path(path), size)

    @staticmethod
    def chmod(side: Side, path: str, mode: int) -> None:
        os.chmod(side.path(path), mode)

    @staticmethod
    def chown(side: Side, path: str, uid: int, gid: int) -> None:
        os.lchown(side.path(path), uid, gid)

    @staticmethod
    def utime(side: Side, path: str, mtime_ns: int) -> object:
        os.utime(side.path(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        return os.lstat(side.path(path)).st_mtime_ns

    @staticmethod
    def setxattr(side: Side, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(side.path(path), name, value, flags, follow_symlinks=False)

    @staticmethod
    def removexattr(side: Side, path: str, name: str) -> None:
        os.removexattr(side.path(path), name, follow_symlinks=False)

    @staticmethod
    def listxattr(side: Side, path: str) -> object:
        return sorted(os.listxattr(side.path(path), follow_symlinks=False))

    @staticmethod
    def mkdir(side: Side, path: str, mode: int) -> None:
        os.mkdir(side.path(path), mode)

    @staticmethod
    def rmdir(side: Side, path: str) -> None:
        os.rmdir(side.path(path))

    @staticmethod
    def unlink(side: Side, path: str) -> None:
        os.unlink(side.path(path))

    @staticmethod
    def symlink(side: Side, target: str, path: str) -> None:
        os.symlink(target, side.path(path))

    @staticmethod
    def readlink(side: Side, path: str) -> object:
        return os.readlink(side.path(path))

    @staticmethod
    def mknod(side: Side, path: str, mode: int, rdev: int) -> None:
        os.mknod(side.path(path), mode, rdev)

    @staticmethod
    def link(side: Side, old: str, new: str) -> None:
        os.link(side.path(old), side.path(new), follow_symlinks=False)

    @staticmethod
    def rename(side: Side, old: str, new: str, flags: int) -> None:
        old_path, new_path = os.fsencode(side.path(old)), os.fsencode(side.path(new))
        files.renameat2(consts.AT_FDCWD, old_path, consts.AT_FDCWD, new_path, flags)

    @staticmethod
    def stat(side: Side, path: str) -> object:
        return describe(os.lstat(side.path(path)))

    @staticmethod
    def list(side: Side, path: str) -> object:
        with os.scandir(side.path(path)) as entries:
            return sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries)

    @staticmethod
    def hold(side: Side, slot: int, path: str, flags: int) -> object:
        Doing.let_go(side, slot)
        side.held[slot] = os.open(side.path(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK)
        return describe(os.fstat(side.held[slot]))

    @staticmethod
    def let_go(side: Side, slot: int) -> None:
        if slot in side.held:
            os.close(side.held.pop(slot))

    @staticmethod
    def held_read(side: Side, slot: int) -> object:
        return os.pread(side.held[slot], 1 << 20, 0) if slot in side.held else None

    @staticmethod
    def held_write(side: Side, slot: int, offset: int, byte: int, size: int) -> object:
        return os.pwrite(side.held[slot], bytes([byte]) * size, offset) if slot in side.held else None

    @staticmethod
    def held_stat(side: Side, slot: int) -> object:
        return describe(os.fstat(side.held[slot])) if slot in side.held else None

    @staticmethod
    def held_change(side: Side, slot: int, mode: int, size: int) -> object:
        if slot in side.held:
            os.fchmod(side.held[slot], mode)
            os.ftruncate(side.held[slot], size)
            return describe(os.fstat(side.held[slot]))
        return None


class Choice:
    """The random choices; few names and little depth, so that operations meet each other's traces.

    Most paths name what was in `plain` at the last look, or would be new in a directory of it; few are arbitrary.
    Without `sets_id` no set-ID bits are given to what is there: given to an open file, over the direct transport they
    go with the next write, even root's (unionfs/serve/passthrough.py).
    """

    def __init__(self, seed: int, plain: str, *, sets_id: bool = True, names: Sequence[str] = NAMES) -> None:
        self.random = random.Random(seed)
        self.plain = plain
        self.sets_id = sets_id
        self.names = names
        self.directories: list[str] = []
        self.paths: list[str] = []

    def look(self) -> None:
        """Learn what is there."""
        self.directories, self.paths = ["."], []
        for directory, subdirectories, names in os.walk(self.plain):
            subdirectories.sort()  # the choice must not hang on the file system's order
            inside = os.path.relpath(directory, self.plain)
            self.directories += [os.path.normpath(os.path.join(inside, name)) for name in subdirectories]
            self.paths += [os.path.normpath(os.path.join(inside, name)) for name in (*subdirectories, *sorted(names))]

    def path(self) -> str:
        fate = self.random.random()
        if fate < 0.6 and self.paths:
            return self.random.choice(self.paths)
        if fate < 0.93:
            return os.path.normpath(os.path.join(self.random.choice(self.directories), self.random.choice(self.names)))
        return "/".join(self.random.choice(self.names) for _ in range(self.random.randrange(1, 4)))

    def spot(self) -> str:
        """Mostly a name that is free."""
        for _ in range(20 if self.random.random() < 0.8 else 1):
            path = self.path()
            if not os.path.lexists(os.path.join(self.plain, path)):
                return path
        return path

    def data(self) -> tuple[int, int]:
        """(byte, how often)"""
        return self.random.randrange(1, 256), self.random.choice((0, 1, 10, 5000))

    def short(self) -> bytes:
        return bytes([self.random.randrange(1, 256)]) * self.random.choice((0, 1, 10))

    def mode(self) -> int:
        return self.random.choice((0o600, 0o644, 0o755, 0o4755, 0o2775, 0o1777, 0o000))

    def new_mode(self) -> int:
        return self.mode() & (0o7777 if self.sets_id else 0o1777)

    def operation(self) -> Operation:
        pick = self.random
        flags = pick.choice((0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC, os.O_APPEND))
        node = pick.choice(((stat.S_IFIFO, 0), (stat.S_IFREG, 0), (stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFSOCK, 0)))
        rename_flags = pick.choice((0, 0, 0, consts.RENAME_NOREPLACE, consts.RENAME_EXCHANGE))
        slot = pick.randrange(4)
        makers: list[tuple[int, str, Callable[[], tuple[Any, ...]]]] = [
            (12, "write", lambda: (self.path(), flags, pick.randrange(20), *self.data())),
            (4, "read", lambda: (self.path(),)),
            (3, "truncate", lambda: (self.path(), pick.choice((0, 3, 9000)))),
            (4, "chmod", lambda: (self.path(), self.new_mode())),
            (3, "chown", lambda: (self.path(), pick.randrange(3), pick.randrange(3))),
            (3, "utime", lambda: (self.path(), pick.randrange(4 * 10**18))),
            (4, "setxattr", lambda: (self.path(), pick.choice(XATTRS), self.short(), pick.randrange(3))),
            (1, "setxattr", lambda: (self.path(), pick.choice(ACL_XATTRS), ACL, 0)),
            (2, "removexattr", lambda: (self.path(), pick.choice(XATTRS))),
            (1, "removexattr", lambda: (self.path(), pick.choice(ACL_XATTRS))),
            (1, "listxattr", lambda: (self.path(),)),
            (10, "mkdir", lambda: (self.spot(), self.mode() | 0o700)),
            (5, "rmdir", lambda: (self.path(),)),
            (8, "unlink", lambda: (self.path(),)),
            (3, "symlink", lambda: (pick.choice(self.names), self.spot())),
            (1, "readlink", lambda: (self.path(),)),
            (3, "mknod", lambda: (self.spot(), node[0] | 0o620, node[1])),
            (8, "link", lambda: (self.path(), self.spot())),
            (10, "rename", lambda: (self.path(), self.spot(), rename_flags)),
            (8, "rename", lambda: (self.path(), self.path(), rename_flags)),
            (4, "stat", lambda: (self.path(),)),
            (3, "list", lambda: (pick.choice((".", self.path())),)),
            (5, "hold", lambda: (slot, self.path(), pick.choice((os.O_RDONLY, os.O_RDWR)))),
            (1, "let_go", lambda: (slot,)),
            (2, "held_read", lambda: (slot,)),
            (2, "held_write", lambda: (slot, pick.randrange(20), *self.data())),
            (2, "held_stat", lambda: (slot,)),
            (1, "held_change", lambda: (slot, self.new_mode(), pick.choice((0, 7)))),
        ]
        _, name, make = pick.choices(makers, [weight for weight, _, _ in makers])[0]
        return Operation(name, make())

    def tree(self, depth: int = 3, *, whiteouts: bool = False) -> dict[str, Entry]:
        """Content for a branch; with `whiteouts` some names are hidden and some directories opaque."""
        tree: dict[str, Entry] = {}
        for name in self.names:
            pick = self.random.random()
            if pick < 0.4 and depth:
                tree[name] = Dir(self.tree(depth - 1, whiteouts=whiteouts), mode=self.mode() | 0o700)
            elif pick < 0.65:
                tree[name] = File(self.short() * 300, mode=self.mode(), uid=self.random.randrange(3))
            elif pick < 0.7:
                tree[name] = Symlink(self.random.choice(self.names))
            elif pick < 0.75:
                tree[name] = Special()
            elif pick < 0.85 and whiteouts:
                tree[whiteout_of(name)] = ""
        if whiteouts and self.random.random() < 0.2:
            tree[".wh..wh..opq"] = ""
        return tree


def add_hard_links(root: str, choice: Choice, above: Sequence[str] = ()) -> None:
    """Join some names of one branch by hard links; none that branches `above` hide, which count in st_nlink all the
    same."""
    found = [path for path, entry in read(root).items() if stat.S_ISREG(entry.type) and ".wh." not in path]
    for path in choice.random.sample(found, min(3, len(found))):
        beside = os.path.join(root, os.path.dirname(path), choice.random.choice(choice.names))
        whiteout = os.path.join(os.path.dirname(beside), whiteout_of(os.path.basename(beside)))
        if os.path.lexists(beside) or os.path.lexists(whiteout):
            continue
        if not any(hidden(name, above) for name in (path, os.path.relpath(beside, root))):
            os.link(os.path.join(root, path), beside)


def hidden(path: str, above: Sequence[str]) -> bool:
    """Whether a name of a branch is not seen for what is in branches above it."""
    parts = path.split("/")
    for root in above:
        for depth, name in enumerate(parts):
            directory = os.path.join(root, *parts[:depth])
            entry = os.path.join(directory, name)
            markers = (f"{directory}/{whiteout_of(name)}", f"{directory}/.wh..wh..opq")
            last = depth == len(parts) - 1
            if any(map(os.path.lexists, markers)) or (os.path.lexists(entry) and (last or not os.path.isdir(entry))):
                return True
    return False


def numbers(root: str) -> dict[str, int]:
    return {path: os.lstat(os.path.join(root, path)).st_ino for path in read(root)}


def check_remount(union: Union) -> None:
    """A new mount of the same branches shows the same tree, times and inode numbers included."""
    before, inodes = read(union.path), numbers(union.path)
    union.remount()
    assert_same(before, read(union.path), "after a remount")
    changed = {path: (ino, now) for path, now in numbers(union.path).items() if (ino := inodes[path]) != now}
    assert not changed, f"inode numbers changed in a remount (before, after): {changed}"


# What operations that race with each other may meet; anything else is the server's failure. EAGAIN: a fifo that another
# thread has open and has not written to.
RACES = {"ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "EINVAL", "ENODATA", "EPERM", "EACCES", "ENXIO",
         "EBADF", "ESPIPE", "ENOTSUP", "EOPNOTSUPP", "EBUSY", "EMLINK", "EAGAIN"}
