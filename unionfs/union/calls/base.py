"""What calls have in common: the union's state, and the answers that count a lookup."""

from __future__ import annotations

import threading

from unionfs.union import attributes, create
from unionfs.union.attributes import Attr
from unionfs.union.by_number import ByNumber
from unionfs.union.handles import Handles
from unionfs.union.listing import Listings
from unionfs.union.nodes import Node
from unionfs.union.operation import Operation
from unionfs.union.stack import Stack


class Calls:
    """A UnionFs, as far as each kind of calls needs it."""

    _stack: Stack
    _lock: threading.Lock
    _operation: Operation
    _handles: Handles
    _listings: Listings
    _by_number: ByNumber

    def _counted(self, node: Node) -> Attr:
        attr = attributes.getattr_(self._stack, node)
        node.lookups += 1
        return attr

    def _new(self, new: create.New) -> Attr:
        new.node.lookups += 1
        return attributes.of_entry(self._stack, new.node, new.entry)
