"""What a prune has removed: of containers, of images, of snapshots."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from runtime.engine.storage.drivers import Away

_Removed = TypeVar("_Removed")


class Pruned(NamedTuple, Generic[_Removed]):
    """What is gone, and the bytes that went with it; why something could not be removed, which is no reason to keep the
    rest, nor to be silent about it; and drivers that could not be asked."""

    removed: list[_Removed]
    freed: int
    failures: list[Exception]
    away: list[Away]

    def and_removed(self, removed: _Removed, freed: int) -> Pruned[_Removed]:
        return self._replace(removed=[*self.removed, removed], freed=self.freed + freed)
