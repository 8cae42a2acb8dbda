"""Which contact do two nodes have? An open-addressed table of 8 bytes an entry, which names contacts by their number.

What it was entered for is read from the contact itself, which is needed anyway where it is found.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.contact_records import ALIVE, NODES, STATE

Array = npt.NDArray[Any]

FREE = np.uint64(0)
"""An entry that was never taken."""

_HALF = np.uint64(0xFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def hash_of(a: int, b: int) -> Any:
    """64 bits of two nodes, in whatever order."""
    mixed = np.uint64(min(a, b)) << np.uint64(32) | np.uint64(max(a, b))
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def find(a: int, b: int, mixed: Any, table: Array, links: Array) -> tuple[Any, int]:
    """The contact of two nodes, -1 if there is none, and where it is in the table, or would be.

    An entry is free, or the upper half of the hash, then the contact + 1. The contact may be gone, or have other nodes
    now: then one of those that it was entered for is gone, and nobody will look for it.
    """
    mask = np.uint64(table.size - 1)
    place = mixed & mask
    while table[place] != FREE:
        if table[place] >> np.uint64(32) == mixed >> np.uint64(32):
            e: Any = np.int64(table[place] & _HALF) - 1
            first, second = links[e, NODES], links[e, NODES + 1]
            if links[e, STATE] & ALIVE and ((first == a and second == b) or (first == b and second == a)):
                return place, e
        place = (place + np.uint64(1)) & mask
    return place, -1


@numba.njit(cache=True, nogil=True)
def enter(place: Any, mixed: Any, e: int, table: Array) -> None:
    """Write a contact, of whose nodes this is the hash, to a place that `find` has told."""
    table[place] = (mixed & ~_HALF) | np.uint64(e + 1)


@numba.njit(cache=True, nogil=True)
def fill_table(links: Array, table: Array) -> int:
    """Enter all live contacts; returns how many there are."""
    table[:] = 0
    mask = np.uint64(table.size - 1)
    count = 0
    for e in range(links.shape[0]):
        if links[e, STATE] & ALIVE:
            mixed = hash_of(links[e, NODES], links[e, NODES + 1])
            place = mixed & mask
            while table[place] != FREE:
                place = (place + np.uint64(1)) & mask
            enter(place, mixed, e, table)
            count += 1
    return count
