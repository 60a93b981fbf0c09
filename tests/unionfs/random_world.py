"""A tree that changes at random; few names and little depth, so that changes meet each other's traces."""

from __future__ import annotations

import os
import stat

from tests.unionfs.timelines import ATTRIBUTE, Place, Thing
from tests.unionfs.world import World, write_new

NAMES = ("a", "b", 127 * "ä" + "c", "d", "e", "f", "g")  # one of 255 bytes


class RandomWorld(World):
    def build(self, path: str) -> None:
        """Some content, made in the directory `path` and settled."""
        pending = [(self.top, path, 0)]
        files_made: list[tuple[str, Thing]] = []
        while pending:
            directory, at, depth = pending.pop()
            for name in NAMES[: 5 if depth < 2 else 3]:
                here, place = os.path.join(at, name), Place(directory, name)
                fate = self.random.random()
                if (fate < 0.4 and depth < 2) or (not depth and name in "ab"):
                    made = self.appear(stat.S_IFDIR, self.mark(stat.S_IFDIR), place)
                    os.mkdir(here, int(made.mark))
                    pending.append((made, here, depth + 1))
                elif fate < 0.5:
                    made = self.appear(stat.S_IFLNK, self.mark(stat.S_IFLNK), place)
                    os.symlink(str(made.mark), here)
                elif fate < 0.6 and files_made and self.across:
                    old, made = self.random.choice(files_made)
                    os.link(old, here)
                    self.set_places(made, made.places.now | {place})
                    continue
                else:
                    made = self.appear(stat.S_IFREG, self.mark(stat.S_IFREG), place, self.some_bytes())
                    write_new(here, int(made.mark), made.content.now)
                    files_made.append((here, made))
                if made.kind != stat.S_IFLNK:
                    os.chown(here, 1, 1)
                    os.setxattr(here, ATTRIBUTE, b"low")
                    made.owner.add(self.moment, 1)
                    made.said.add(self.moment, b"low")
        self.settle()

    def change(self) -> None:
        """One change, or some that belong together."""
        pick = self.random
        files_, directories = self.living(stat.S_IFREG), self.living(stat.S_IFDIR)
        spot = self._spot()
        name = pick.choices(
            ("create", "mkdir", "symlink", "link", "write", "truncate", "chown", "say", "open", "unlink", "again",
             "rename", "rename", "replace", "exchange", "rename_directory", "replace_directory", "rm", "renew"),
            (6, 3, 2, 4, 6, 2, 4, 3, 3, 6, 5, 6, 4, 4, 3, 3, 3, 3, 4),
        )[0]  # fmt: skip
        leaves = self.living(stat.S_IFREG, stat.S_IFLNK)
        anything = self.living()
        if not files_ or not directories or not leaves:
            name = "create" if len(anything) < 3 else "mkdir"
        if name in ("create", "mkdir", "symlink"):
            getattr(self, name)(spot)
        elif name == "link" and self.across:
            self.link(pick.choice(files_), spot)
        elif name in ("write", "truncate", "open"):
            getattr(self, name)(pick.choice(files_))
        elif name in ("chown", "say"):
            getattr(self, name)(pick.choice(files_ + directories))
        elif name == "unlink":
            thing = pick.choice(leaves)
            self.unlink(thing, pick.choice(sorted(thing.places.now, key=self.path)))
        elif name == "again":
            thing = pick.choice(leaves)
            place = thing.place
            self.unlink(thing, place)
            pick.choice((self.create, self.create, self.symlink, self.mkdir))(place)
        elif name == "rename":
            self.rename(pick.choice(leaves), spot)
        elif name == "rename_directory":
            self.rename(pick.choice(directories), spot)
        elif name == "replace":
            self.replace(pick.choice(leaves), pick.choice(leaves))
        elif name == "replace_directory":
            empty = [directory for directory in directories if not self.inside(directory)]
            if empty:
                self.replace(pick.choice(directories), pick.choice(empty))
        elif name == "exchange":
            self.exchange(pick.choice(anything), pick.choice(anything))
        elif name in ("rm", "renew"):
            directory = pick.choice(directories)
            place = directory.place
            self.rm(directory)
            if name == "renew":
                new = self.mkdir(place)
                for _ in range(pick.randrange(3)):
                    self.create(Place(new, pick.choice([each for each in NAMES if each not in self.inside(new)])))

    def _spot(self) -> Place:
        """A free name, mostly one that was taken before."""
        for _ in range(50):
            directory = self.random.choice([self.top, *self.living(stat.S_IFDIR)])
            name = self.random.choice(NAMES)
            if name not in self.inside(directory):
                return Place(directory, name)
        return Place(self.top, f"more{self.moment}")

    def sync(self) -> None:
        """fsync(2) of a file or a directory, or fdatasync(2), seldom syncfs(2)."""
        fate = self.random.random()
        directories = self.living(stat.S_IFDIR)
        if fate < 0.04:
            self.sync_all()
        elif fate < 0.35 and directories:
            self.sync_directory(self.random.choice(directories))
        elif regular := self.living(stat.S_IFREG):
            recent = regular[-8:] if self.random.random() < 0.5 else regular
            thing = self.random.choice(recent)
            if fate < 0.5:
                self.sync_data(thing)
            else:
                self.sync_file(thing)
