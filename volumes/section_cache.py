"""Which decoded sections are kept, so that neighbouring blocks do not decode the same section again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

BUDGET = 2**30
"""Bytes of sections that are kept unless told otherwise."""


class SectionCache:
    """Decoded sections by index, the least recently used dropped first; safe to use from several threads.

    Sections are decoded one at a time, so one file handle may serve all threads.

    Args:
        load: decodes the section of an index.
        budget: bytes of sections to keep; the newest section stays whatever its size.
    """

    def __init__(self, load: Callable[[int], Array], budget: int = BUDGET) -> None:
        self._load = load
        self._budget = budget
        self._sections: OrderedDict[int, Array] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Array:
        with self._lock:
            if index in self._sections:
                self._sections.move_to_end(index)
                return self._sections[index]
            section = self._load(index)
            self._sections[index] = section
            self._bytes += section.nbytes
            while self._bytes > self._budget and len(self._sections) > 1:
                _, dropped = self._sections.popitem(last=False)
                self._bytes -= dropped.nbytes
            return section
