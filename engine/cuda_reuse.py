"""Memory, streams and events of a GPU that are used again once nobody refers to them."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Reuse(Generic[Thing]):
    """What is not in use, by size.

    Nothing is given back to CUDA when an object dies: that may happen in any thread, and between two calls that record
    a graph. What lies here may still be in use by work that is queued.
    """

    def __init__(self) -> None:
        self._spare: dict[int, deque[Thing]] = {}

    @property
    def bytes(self) -> int:
        """Of all that is not in use."""
        return sum(size * len(things) for size, things in list(self._spare.items()))

    def take(self, size: int) -> Thing | None:
        """One of exactly this size that is not in use; the one that was used last, so that addresses come again."""
        try:
            return self._spare[size].pop()
        except LookupError:
            return None

    def return_with(self, holder: object, size: int, thing: Thing) -> None:
        """Count a thing as not in use once its holder is gone."""
        weakref.finalize(holder, self._spare.setdefault(size, deque()).append, thing).atexit = False

    def drain(self) -> list[Thing]:
        """Take all that is not in use."""
        taken = []
        for size in list(self._spare):
            while (thing := self.take(size)) is not None:
                taken.append(thing)
        return taken
