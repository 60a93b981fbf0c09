"""What a file system owes after a power cut: where each of its files may be, and what may be in it.

A *thing* is a file, a directory or a symbolic link. Timelines say in which places it was, and with what content and
attributes (`world.py` makes them). A sync raises their floors: states before the floor must not come back. After a cut
each thing has to be in a state from its floor on, and each rename is done or not. That is what ext4, xfs and btrfs give
for single operations by themselves, and no more is asked of a union on them: things need not be as they were at one
moment, unless the file system keeps everything in order.

A place is a name in a directory, which is a thing itself: so what was in a removed directory has no place in a new one
of the same name. Things are told apart by their permission bits, which they keep, symbolic links by their targets.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from tests.trees import Found

ATTRIBUTE = "user.said"
# Bytes that are written, and may be found, together.
SLOT = 16

State = TypeVar("State")


class Timeline(Generic[State]):
    """(moment, state from then on), first to last; `floor` is the moment whose state is on the disk."""

    def __init__(self, moment: int, state: State) -> None:
        self.states = [(moment, state)]
        self.floor = moment

    @property
    def now(self) -> State:
        return self.states[-1][1]

    def add(self, moment: int, state: State) -> None:
        self.states.append((moment, state))

    def at(self, moment: int) -> State:
        return next((state for since, state in reversed(self.states) if since <= moment), self.states[0][1])

    def since(self, moment: int) -> list[State]:
        """The state at `moment` and all later ones."""
        return [self.at(moment)] + [state for began, state in self.states if began > moment]

    @property
    def possible(self) -> list[State]:
        return self.since(self.floor)

    def copy(self) -> Timeline[State]:
        copy: Timeline[State] = Timeline(self.floor, self.now)
        copy.states = list(self.states)
        return copy


class Place(NamedTuple):
    directory: Thing
    name: str


Places = frozenset[Place]
NOWHERE: Places = frozenset()


class Past(NamedTuple):
    """Of a thing, up to some moment."""

    places: Timeline[Places]
    content: Timeline[bytes]
    owner: Timeline[int]
    said: Timeline[bytes | None]


class Thing:
    """`mark` is its permission bits or its target. `born` is the moment before it was: a cut may take it back to that
    until it is synced."""

    def __init__(self, kind: int, mark: int | str, born: int) -> None:
        self.kind = kind
        self.mark = mark
        self.places: Timeline[Places] = Timeline(born, NOWHERE)
        self.content: Timeline[bytes] = Timeline(born, b"")
        self.owner: Timeline[int] = Timeline(born, 0)
        self.said: Timeline[bytes | None] = Timeline(born, None)
        self.ever: set[Thing] = set()  # what was in this directory at any time

    @property
    def key(self) -> tuple[int, int | str]:
        return self.kind, self.mark

    @property
    def place(self) -> Place:
        return min(self.places.now, key=lambda place: (place.name, str(place.directory.mark)))

    @property
    def path(self) -> str:
        if not self.places.now:
            return ""  # the root
        directory, name = self.place
        return os.path.join(directory.path, name)

    def __repr__(self) -> str:
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
        return f"{kinds[self.kind]} {self.mark if isinstance(self.mark, str) else oct(self.mark)}"

    def past(self) -> Past:
        return Past(self.places.copy(), self.content.copy(), self.owner.copy(), self.said.copy())


class Move(NamedTuple):
    """A rename: `other` is what it replaced or was exchanged for."""

    moment: int
    thing: Thing
    other: Thing
    exchange: bool


class History(NamedTuple):
    """All that a world knew at some moment."""

    moment: int
    top: Thing
    pasts: dict[Thing, Past]
    moves: list[Move]

    def problems(self, tree: Mapping[str, Found], *, in_order: bool) -> list[str]:
        """What of a tree found after a cut at this moment should not be. With `in_order` the file system keeps
        everything in order, and what it shows was so at one moment."""
        return _Seen(self, tree, in_order).problems()


class _Seen:
    """A tree, as things: where each is."""

    def __init__(self, history: History, tree: Mapping[str, Found], in_order: bool) -> None:
        self.history = history
        self.in_order = in_order
        self.found: dict[Thing, list[Found]] = {}
        self.places: dict[Thing, Places] = {}
        self.strangers: list[str] = []
        known = {thing.key: thing for thing in history.pasts}
        at = {"": history.top}
        for path, entry in sorted(tree.items()):
            if path == ".":
                continue
            mark = entry.target if entry.type == stat.S_IFLNK else entry.mode
            thing = known.get((entry.type, mark or 0))
            parent = at.get(os.path.dirname(path))
            if thing is None or parent is None:
                self.strangers.append(f"{path} is {entry} and nothing that there was")
                continue
            at[path] = thing
            self.found.setdefault(thing, []).append(entry)
            self.places[thing] = self.at(thing) | {Place(parent, os.path.basename(path))}

    def at(self, thing: Thing) -> Places:
        return self.places.get(thing, NOWHERE)

    def problems(self) -> list[str]:
        problems = list(self.strangers)
        for thing, past in self.history.pasts.items():
            problems += self._place(thing, past)
            for entry in self.found.get(thing, []):
                problems += [f"{thing!r} at {_say(self.at(thing))}: {line}" for line in self._entry(thing, past, entry)]
        problems += self._moves()
        if self.in_order and not problems and not self._at_one_moment():
            problems.append("the tree is not as it was at any one moment")
        return problems

    def _place(self, thing: Thing, past: Past) -> Iterator[str]:
        places, possible = self.at(thing), past.places.possible
        states = [state for _, state in past.places.states]
        if places not in possible and not self._is_left(places, possible, states):
            yield f"{thing!r} is at {_say(places)}, not at {' or '.join(map(_say, possible))}"

    def _is_left(self, places: Places, possible: list[Places], states: list[Places]) -> bool:
        """Whether btrfs left old places. Of a file that had several, or was moved into another directory, its log tells
        what concerns the one that was synced; what is removed goes from the log, with the renames that were synced."""
        if self.in_order:
            return False
        ever = NOWHERE.union(*states)
        if any(len(state) > 1 for state in states):
            return possible[0].intersection(*possible) <= places <= ever  # each name by itself
        if len({place.directory for place in ever}) > 1:
            return any(state <= places for state in possible) and places <= ever
        return NOWHERE in possible[1:] and places in states

    def _entry(self, thing: Thing, past: Past, entry: Found) -> Iterator[str]:
        if thing.kind == stat.S_IFREG:
            linked = any(len(state) > 1 for _, state in past.places.states)
            if entry.nlink != len(self.at(thing)) and (self.in_order or not linked):
                yield f"{entry.nlink} links"  # of a union's copies the count is kept beside the names
            if wrong := _torn(entry.content or b"", past.content.possible):
                yield wrong
        if thing.kind != stat.S_IFLNK:
            said = (entry.xattrs or {}).get(ATTRIBUTE)
            if entry.uid not in past.owner.possible:
                yield f"the owner is {entry.uid}, not of {past.owner.possible}"
            if said not in past.said.possible:
                yield f"it says {said!r}, not of {past.said.possible}"

    def _moves(self) -> Iterator[str]:
        """A rename takes one and brings the other, at once."""
        for moment, thing, other, exchange in self.history.moves:
            pasts = [self.history.pasts[each].places for each in (thing, other)]
            states = [state for past in pasts for _, state in past.states]
            if any(len(places) > 1 for places in [*states, self.at(thing), self.at(other)]):
                continue  # with several links it is nobody's business which of them moved
            (came, stayed), (went, kept) = (
                (self.at(each) not in [state for began, state in past.states if began < moment],
                 self.at(each) not in past.since(moment))
                for each, past in zip((thing, other), pasts, strict=True)
            )  # fmt: skip
            if went and stayed:
                yield f"{moment}: the rename took {other!r} away and did not bring {thing!r}"
            if exchange and came and kept:
                yield f"{moment}: the exchange brought {thing!r} and left {other!r}"

    def _at_one_moment(self) -> bool:
        pasts = self.history.pasts
        return any(
            all(self.at(thing) == past.places.at(moment) for thing, past in pasts.items())
            for moment in range(self.history.moment, -1, -1)
        )


def _say(places: Places) -> str:
    return " and ".join(sorted(f"{place.directory!r}/{place.name}" for place in places)) or "nowhere"


def _torn(content: bytes, possible: list[bytes]) -> str:
    """Writes may come to the disk one without the other, and a length before the bytes that it makes room for."""
    if content in possible:
        return ""
    lengths = [len(state) for state in possible]
    if not min(lengths) <= len(content) <= max(lengths):
        return f"{len(content)} bytes, not {sorted(set(lengths))}"
    for at in range(0, len(content), SLOT):
        piece = content[at : at + SLOT]
        zeros = at >= min(lengths) and not any(piece)
        if not zeros and not any(state[at : at + len(piece)] == piece for state in possible):
            return f"wrong bytes at {at}: {piece!r}"
    return ""
