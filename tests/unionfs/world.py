"""A tree that is changed and synced, an operation at a time, with timelines of everything in it (`timelines.py`)."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable

from tests.unionfs.timelines import ATTRIBUTE, NOWHERE, SLOT, History, Move, Place, Places, Thing
from unionfs.linux import consts, files

_LONG = 20_000
_OWNERS = (0, 1, 2, 3)


class World:
    """A tree, and what can be done to it. With `whiteouts` some renames leave one; without `across` no rename leads
    from one directory into another, nor has a file several links."""

    def __init__(self, seed: int, *, whiteouts: bool, across: bool) -> None:
        self.root = self.disk = ""
        self.random = random.Random(seed)
        self.whiteouts = whiteouts
        self.across = across
        self.moment = 0
        self.top = Thing(stat.S_IFDIR, "top", 0)
        self.things: list[Thing] = []
        self.moves: list[Move] = []
        self.log: list[str] = []
        self._marks = {stat.S_IFREG: 0, stat.S_IFDIR: 0, stat.S_IFLNK: 0}

    # What there is.

    def mark(self, kind: int) -> int | str:
        self._marks[kind] += 1
        number = self._marks[kind]
        assert number < 0o1000, "permission bits for no more"
        return f"to/{number}" if kind == stat.S_IFLNK else number

    def appear(self, kind: int, mark: int | str, place: Place, content: bytes = b"") -> Thing:
        thing = Thing(kind, mark, self.moment - 1)
        self.things.append(thing)
        self.set_places(thing, frozenset({place}))
        thing.content.add(self.moment, content)
        return thing

    def set_places(self, thing: Thing, places: Places) -> None:
        thing.places.add(self.moment, places)
        for directory, _ in places:
            directory.ever.add(thing)

    def inside(self, directory: Thing) -> dict[str, Thing]:
        return {
            place.name: thing for thing in directory.ever for place in thing.places.now if place.directory is directory
        }

    def living(self, *kinds: int) -> list[Thing]:
        return [thing for thing in self.things if thing.places.now and (not kinds or thing.kind in kinds)]

    def at(self, thing: Thing) -> str:
        return os.path.join(self.root, thing.path)

    def settle(self) -> None:
        """All is on the disk as it is."""
        for thing in self.things:
            thing.places.floor = self.moment
            self._settle_inside(thing)

    def _settle_inside(self, thing: Thing) -> None:
        for timeline in (thing.content, thing.owner, thing.said):
            timeline.floor = self.moment

    def begin(self, root: str, disk: str) -> None:
        """The tree is at `root` from now on, the file system that it is on at `disk`."""
        self.root, self.disk = root, disk

    def some_bytes(self) -> bytes:
        size = self.random.choice((SLOT * 4, SLOT * 4, _LONG))
        return bytes([self.random.randrange(1, 256)]) * size

    def history(self) -> History:
        return History(self.moment, self.top, {thing: thing.past() for thing in self.things}, list(self.moves))

    # Changes.

    def _begin(self, text: str) -> None:
        self.moment += 1
        self.log.append(f"{self.moment}: {text}")

    def path(self, place: Place) -> str:
        return os.path.join(place.directory.path, place.name)

    def _full(self, place: Place) -> str:
        return os.path.join(self.root, self.path(place))

    def create(self, place: Place) -> None:
        mark, content = self.mark(stat.S_IFREG), self.some_bytes()
        self._begin(f"create {self.path(place)} {mark:#o} {len(content)}")
        write_new(self._full(place), int(mark), content)
        made = self.appear(stat.S_IFREG, mark, place)
        made.content.add(self.moment, content)

    def mkdir(self, place: Place) -> Thing:
        mark = self.mark(stat.S_IFDIR)
        self._begin(f"mkdir {self.path(place)} {mark:#o}")
        os.mkdir(self._full(place), int(mark))
        return self.appear(stat.S_IFDIR, mark, place)

    def symlink(self, place: Place) -> None:
        mark = self.mark(stat.S_IFLNK)
        self._begin(f"symlink {self.path(place)} {mark}")
        os.symlink(str(mark), self._full(place))
        self.appear(stat.S_IFLNK, mark, place)

    def link(self, thing: Thing, place: Place) -> None:
        self._begin(f"link {thing.path} {self.path(place)}")
        os.link(self.at(thing), self._full(place))
        self.set_places(thing, thing.places.now | {place})

    def write(self, thing: Thing) -> None:
        """Over some of it; sometimes synced by the write itself."""
        old = thing.content.now
        if len(old) < SLOT:
            return
        slot = self.random.randrange(len(old) // SLOT) * SLOT
        new = bytes([self.random.randrange(1, 256)]) * SLOT
        synced = self.random.random() < 0.2
        self._begin(f"{'synced ' if synced else ''}write {thing.path}")
        fd = os.open(self.at(thing), os.O_WRONLY | (os.O_SYNC if synced else 0))
        try:
            os.pwrite(fd, new, slot)
        finally:
            os.close(fd)
        # A write syncs its own bytes: all is on the disk if the rest was.
        synced = synced and len(thing.content.possible) == 1
        thing.content.add(self.moment, old[:slot] + new + old[slot + SLOT :])
        if synced:
            thing.content.floor = self.moment

    def truncate(self, thing: Thing) -> None:
        size = self.random.choice((0, SLOT * 2))
        self._begin(f"truncate {thing.path} {size}")
        os.truncate(self.at(thing), size)
        thing.content.add(self.moment, thing.content.now[:size].ljust(size, b"\0"))

    def open(self, thing: Thing) -> None:
        """To write, and then not."""
        self._begin(f"open {thing.path}")
        os.close(os.open(self.at(thing), os.O_RDWR))

    def chown(self, thing: Thing) -> None:
        owner = self.random.choice(_OWNERS)
        self._begin(f"chown {thing.path} {owner}")
        os.lchown(self.at(thing), owner, owner)
        thing.owner.add(self.moment, owner)

    def say(self, thing: Thing) -> None:
        value = b"%d" % self.moment
        self._begin(f"setxattr {thing.path}")
        os.setxattr(self.at(thing), ATTRIBUTE, value)
        thing.said.add(self.moment, value)

    def unlink(self, thing: Thing, place: Place) -> None:
        self._begin(f"unlink {self.path(place)}")
        os.unlink(self._full(place))
        self.set_places(thing, thing.places.now - {place})

    def rm(self, directory: Thing) -> None:
        """rm -r, a step at a time."""
        for name, thing in sorted(self.inside(directory).items()):
            if thing.kind == stat.S_IFDIR:
                self.rm(thing)
                continue
            self.unlink(thing, Place(directory, name))
        self._begin(f"rmdir {directory.path}")
        os.rmdir(self.at(directory))
        self.set_places(directory, NOWHERE)

    def rename(self, thing: Thing, place: Place) -> None:
        if self._is_in(place.directory, thing) or not self._leads(thing.place, place):
            return
        flags = consts.RENAME_WHITEOUT if self.whiteouts and self.random.random() < 0.1 else 0
        old = thing.place
        self._rename(old, place, flags)
        self.set_places(thing, thing.places.now - {old} | {place})

    def replace(self, thing: Thing, other: Thing) -> None:
        old, place = thing.place, other.place
        if thing is other or not self._leads(old, place):
            return
        if self._is_in(place.directory, thing) or self._is_in(thing, other):
            return
        self._rename(old, place, 0)
        self.set_places(thing, thing.places.now - {old} | {place})
        self.set_places(other, other.places.now - {place})
        self.moves.append(Move(self.moment, thing, other, False))

    def exchange(self, thing: Thing, other: Thing) -> None:
        old, place = thing.place, other.place
        if thing is other or not self._leads(old, place):
            return
        if self._is_in(place.directory, thing) or self._is_in(old.directory, other):
            return
        self._rename(old, place, consts.RENAME_EXCHANGE)
        self.set_places(thing, thing.places.now - {old} | {place})
        self.set_places(other, other.places.now - {place} | {old})
        self.moves.append(Move(self.moment, thing, other, True))

    def _leads(self, old: Place, new: Place) -> bool:
        return self.across or old.directory is new.directory

    def _rename(self, old: Place, new: Place, flags: int) -> None:
        paths = self.path(old), self.path(new)
        full = self._full(old), self._full(new)
        self._begin(f"rename {paths[0]} {paths[1]} {flags}")
        files.renameat2(consts.AT_FDCWD, os.fsencode(full[0]), consts.AT_FDCWD, os.fsencode(full[1]), flags)

    def _is_in(self, inner: Thing, outer: Thing) -> bool:
        while inner is not outer and inner is not self.top:
            inner = inner.place.directory
        return inner is outer

    # Syncs.

    def sync_all(self) -> None:
        """syncfs(2), also on the disk: the kernel tells FUSE of none (fuse_sync_fs(), fs/fuse/inode.c)."""
        self._begin("syncfs")
        _on(self.root, files.syncfs)
        _on(self.disk, files.syncfs)
        self.settle()

    def sync_data(self, thing: Thing) -> None:
        """fdatasync(2)"""
        self._begin(f"fdatasync {thing.path}")
        _on(self.at(thing), os.fdatasync)
        thing.content.floor = self.moment

    def sync_file(self, thing: Thing) -> None:
        self._begin(f"fsync {thing.path}")
        _on(self.at(thing), os.fsync)
        thing.places.floor = self.moment
        self._settle_inside(thing)
        for directory, _ in thing.places.now:
            self._settle_births(directory)

    def sync_directory(self, directory: Thing) -> None:
        self._begin(f"fsync {directory.path}/")
        _on(self.at(directory), os.fsync)
        directory.places.floor = self.moment
        self._settle_inside(directory)
        self._settle_births(directory)
        for thing in directory.ever:
            thing.places.floor = max(thing.places.floor, _settled_in(directory, thing.places.states))

    def _settle_births(self, directory: Thing) -> None:
        """What is synced can be reached: through directories that are new, up to one that was on the disk already,
        though perhaps elsewhere."""
        while directory is not self.top and directory.places.floor < (born := directory.places.states[1][0]):
            directory.places.floor = born
            directory = directory.place.directory


def _settled_in(directory: Thing, states: list[tuple[int, Places]]) -> int:
    """Since when something has been where it is in `directory`, or out of it."""
    inside = [(moment, {place for place in places if place.directory is directory}) for moment, places in states]
    since = inside[-1][0]
    for moment, places in reversed(inside):
        if places != inside[-1][1]:
            break
        since = moment
    return since


def write_new(path: str, mode: int, content: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        os.pwrite(fd, content, 0)
    finally:
        os.close(fd)


def _on(path: str, act: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        act(fd)
    finally:
        os.close(fd)
