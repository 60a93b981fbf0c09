"""Where in a union's branches the starting trees of the POSIX table lie: settings, by name."""

from __future__ import annotations

from dataclasses import replace

from tests.contracts.posix import CASES, FRESH
from tests.mounting import Union
from tests.trees import Dir, Entry, HardLink, Tree, build, entry, whiteout_of

SETTINGS = ("upper-only", "lower-only", "merged", "over-whiteouts")


def prepare_union(setting: str, home: str, options: str) -> Union:
    """The branches of one setting, filled; not mounted yet."""
    branches = {"lower": {}, "upper": {}, "bottom": {}}  # type: dict[str, dict[str, Entry]]
    for case in CASES.values():
        if setting == "upper-only":
            branches["upper"][case.name] = case.tree
        elif setting == "lower-only":
            branches["lower"][case.name] = case.tree
        elif setting == "merged":
            branches["upper"][case.name], branches["lower"][case.name] = split(case.tree)
            branches["bottom"][case.name] = decoys(case.tree)
        else:
            names = [*case.tree, *FRESH]
            branches["lower"][case.name] = {name: decoy(index) for index, name in enumerate(names)}
            branches["upper"][case.name] = {whiteout_of(name): "" for name in names}
    for name, tree in branches.items():
        build(f"{home}/{name}", tree)
    return Union(home, [f"{home}/bottom=ro", f"{home}/lower=ro", f"{home}/upper"], [options])


def split(tree: Tree) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """(upper, lower): directories in both, other entries by turns; all in the lower where there are hard links."""
    upper: dict[str, Entry] = {}
    lower: dict[str, Entry] = {}
    together = has_hard_links(tree)
    for index, (name, value) in enumerate(sorted(tree.items())):
        node = entry(value)
        if isinstance(node, Dir):
            above, below = ({}, node.entries) if together else split(node.entries)
            upper[name] = replace(node, entries=above)
            lower[name] = Dir(below, mode=0o700, uid=4, gid=4)  # the top one's metadata counts
        else:
            (lower if together or index % 2 else upper)[name] = value
    return upper, lower


def has_hard_links(tree: Tree) -> bool:
    nodes = [entry(value) for value in tree.values()]
    return any(isinstance(n, HardLink) or (isinstance(n, Dir) and has_hard_links(n.entries)) for n in nodes)


def decoys(tree: Tree) -> dict[str, Entry]:
    """Entries of the same names, that what is above hides: files for non-directories, merged directories of them."""
    nodes = {name: entry(value) for name, value in tree.items()}
    return {name: Dir(decoys(node.entries), mode=0o711) if isinstance(node, Dir) else "hidden"
            for name, node in nodes.items()}


def decoy(index: int) -> Entry:
    return {"left-over": "from below", "dir": {"deep": ""}} if index % 2 else "from below"
