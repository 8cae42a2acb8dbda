"""How do contacts lie in memory while they merge, and which of two merges first?

Merging goes from contact to contact all over the graph, and waits for memory more than for anything else. So all that
it asks of a contact lies in 64 bytes, a line of the cache: a row of two arrays, int64 and int32, of the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNIT = 1 << 16
"""What a difference of 1 between uint8 affinities is in units of the threshold."""

SUM, COUNT, FACE, PLACED = range(4)
"""Columns of int64: sum of the uint8 affinities, number of faces, smallest face id; for the queue, the number of faces
that the contact had when it was put in order, -1 as long as it waits."""

NODES, FOLLOWING, AFTER, BUCKET, STATE = 8, 10, 12, 13, 14
"""Columns of int32, behind those: both nodes; the half-edge that follows in the list of either; for the queue, the
contact that waits behind this one, and the bucket; and the state, of the bits below. A half-edge is 2 * contact + which
of its nodes it belongs to."""

ALIVE, QUEUED, MERGED = 1, 2, 4
"""It is between two roots; it waits to merge; it has merged, and tells nodes and score of that moment."""

_LINE = 64


@dataclass(frozen=True, eq=False)
class ContactRecords:
    """Contacts that are merged in place.

    Attributes:
        scores: int64 (contacts, 8).
        links: int32 (contacts, 16), of the same memory.
    """

    scores: Array
    links: Array


def empty_records(count: int) -> ContactRecords:
    """Room for contacts, one line of the cache each.

    Made here, a large array lies in large pages of memory; made by compiled code it would not.
    """
    memory = np.empty((count + 1) * _LINE, np.uint8)
    first = -memory.ctypes.data % _LINE
    lines = memory[first : first + count * _LINE].reshape(count, _LINE)
    return ContactRecords(lines.view(np.int64), lines.view(np.int32))


_HALF = np.uint64(0xFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def _product(a: int, b: int) -> tuple[Any, Any]:
    """Upper and lower 64 bits of a product of two whole numbers below 2^63."""
    a1, a0 = np.uint64(a) >> np.uint64(32), np.uint64(a) & _HALF
    b1, b0 = np.uint64(b) >> np.uint64(32), np.uint64(b) & _HALF
    low, middle = a0 * b0, a1 * b0
    carry = middle + (low >> np.uint64(32))
    rest = a0 * b1 + (carry & _HALF)
    high = a1 * b1 + (carry >> np.uint64(32)) + (rest >> np.uint64(32))
    return high, rest << np.uint64(32) | (low & _HALF)


@numba.njit(cache=True, nogil=True)
def precedes(sum_a: int, count_a: int, face_a: int, sum_b: int, count_b: int, face_b: int) -> bool:
    """Whether contact a merges before b: by higher mean, of equal ones by lower face id. Sums are below 2^63."""
    if (sum_a | sum_b) < (1 << 35) and (count_a | count_b) < (1 << 27):
        left, right = sum_a * count_b, sum_b * count_a
        return left > right or (left == right and face_a < face_b)
    a, b = _product(sum_a, count_b), _product(sum_b, count_a)
    if a[0] != b[0]:
        return bool(a[0] > b[0])
    return bool(a[1] > b[1] or (a[1] == b[1] and face_a < face_b))


@numba.njit(cache=True, nogil=True)
def unify(scores: Array, links: Array, stays: int, dead: int) -> None:
    """Make one contact of two that touch the same nodes."""
    scores[stays, SUM] += scores[dead, SUM]
    scores[stays, COUNT] += scores[dead, COUNT]
    scores[stays, FACE] = min(scores[stays, FACE], scores[dead, FACE])
    links[dead, STATE] = 0
