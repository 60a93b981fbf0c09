"""Names whose `.wh.NAME` would be longer than a name can be, and a lower branch of them."""

from __future__ import annotations

from tests.trees import HardLink, Tree

NAMES = ["n" * 252, "é" * 126 + "n", "𝄞" * 63 + "nn", "n" * 255]
LONG = "€" * 85

DIRECTORIES: Tree = {name: {name: "low", LONG: {LONG: "deep"}} for name in NAMES}
LOWER: Tree = {
    LONG: "low", "short": "s", "f": dict.fromkeys(NAMES, "low"),
    "d": DIRECTORIES, "h": {LONG: "linked", "h2": HardLink(LONG)},
}  # fmt: skip
