"""The inner loop of the region graph: serial, compiled, without the interpreter's lock.

Most fragments touch few others, so each has a short row of slots of its own, close to those of the fragments beside it.
What does not fit goes to one hash table.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SLOTS = 8
"""Contacts that a fragment holds in its own row."""

_FEW = 32
"""Rows that are sorted as quickly without a library's sorting."""


@numba.njit(cache=True, nogil=True)
def place_of(key: int, size: int) -> Any:
    """Where the search for a key begins in an open-addressed table; its size is a power of two."""
    mixed = np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((mixed >> np.uint64(31)) & np.uint64(size - 1))


@numba.njit(cache=True, nogil=True)
def _find(table: Array, key: int) -> Any:
    """The place of a key, or the free place (key 0) where it belongs."""
    place = place_of(key, table.shape[0])
    while table[place, 0] != 0 and table[place, 0] != key:
        place = (place + 1) & (table.shape[0] - 1)
    return place


@numba.njit(cache=True, nogil=True)
def _doubled(table: Array) -> Array:
    larger = np.zeros((2 * table.shape[0], 4), np.int64)
    for old in range(table.shape[0]):
        if table[old, 0]:
            larger[_find(larger, table[old, 0])] = table[old]
    return larger


@numba.njit(cache=True, nogil=True)
def _row_slot(row_ids: Array, low: int, high: int) -> tuple[int, int, int]:
    """In which row a contact belongs, in which slot, SLOTS if it is full, and the id that is noted there."""
    # Either end in turn, so that rows fill evenly.
    owner, guest = (low, high) if (low ^ high) & 1 else (high, low)
    slot = 0
    while slot < SLOTS and row_ids[owner, slot] != guest and row_ids[owner, slot] != 0:
        slot += 1
    return owner, slot, guest


@numba.njit(cache=True, nogil=True)
def _differing(own: Array, other: Array, places: Array) -> int:
    """Note where two rows hold different fragments; returns how often.

    Without branches, which could not be predicted: this is what makes the graph fast.
    """
    found = 0
    for x in range(own.size):
        places[found] = x
        found += (own[x] != other[x]) & (own[x] != 0) & (other[x] != 0)
    return found


@numba.njit(cache=True, nogil=True)
def count_contacts(
    affinities: Array,
    labels: Array,
    first_face: int,
    face_z: int,
    face_y: int,
    row_ids: Array,
    row_values: Array,
) -> Array:
    """Sum up the faces between different fragments, in one pass.

    affinities (3, z, y, x) uint8, labels (z, y, x) uint32; `first_face` is the id of voxel 0's first face, `face_z` and
    `face_y` what a step along z and y adds to it. Rows are zeros: uint32 (fragments + 1, SLOTS) for the other ids, and
    int64 (fragments + 1, SLOTS, 3) for sum, count and smallest face. A contact is in the row of either fragment.

    Returns the hash table for what did not fit, int64 (places, 4): key (lower id << 32 | higher id), sum, count and
    face; key 0 is a free place.
    """
    depth, height, width = labels.shape
    table = np.zeros((1 << 10, 4), np.int64)
    used = 0
    places = np.empty(width + 1, np.int64)
    # Rows of voxels, each along z, y and x in turn.
    for row in range(3 * depth * height):
        z, y, d = row // (3 * height), row // 3 % height, row % 3
        if (d == 0 and z == 0) or (d == 1 and y == 0):
            continue
        first = 1 if d == 2 else 0
        own, values = labels[z, y, first:], affinities[d, z, y, first:]
        other = labels[z - 1, y] if d == 0 else (labels[z, y - 1] if d == 1 else labels[z, y])
        row_face = first_face + z * face_z + y * face_y + 3 * first + d
        count = _differing(own, other, places)
        k = 0
        while k < count:
            x = places[k]
            a, b = own[x], other[x]
            # Neighbouring faces mostly belong to the same pair.
            total, first_of_run, begun = np.int64(0), x, k
            while k < count and own[places[k]] == a and other[places[k]] == b:
                total += values[places[k]]
                k += 1
            low: Any = np.int64(min(a, b))
            high: Any = np.int64(max(a, b))
            owner, slot, guest = _row_slot(row_ids, low, high)
            if slot < SLOTS:
                entry = row_values[owner, slot]
                row_ids[owner, slot] = guest
            else:
                if 2 * used > table.shape[0]:
                    table = _doubled(table)
                key = low << 32 | high
                place = _find(table, key)
                used += table[place, 0] == 0
                table[place, 0] = key
                entry = table[place, 1:]
            face = row_face + 3 * first_of_run
            if entry[1] == 0 or face < entry[2]:
                entry[2] = face
            entry[0] += total
            entry[1] += k - begun
    return table


@numba.njit(cache=True, nogil=True)
def list_contacts(row_ids: Array, row_values: Array, table: Array) -> Array:
    """All contacts of the rows and the table: int64 (5, contacts) of lower id, higher id, sum, count and face."""
    total = 0
    for node in range(row_ids.shape[0]):
        for slot in range(SLOTS):
            total += row_ids[node, slot] != 0
    for place in range(table.shape[0]):
        total += table[place, 0] != 0
    columns = np.empty((5, total), np.int64)
    k = 0
    for node in range(row_ids.shape[0]):
        for slot in range(SLOTS):
            other = np.int64(row_ids[node, slot])
            if other == 0:
                break
            columns[0, k], columns[1, k] = (node, other) if node < other else (other, node)
            columns[2:, k] = row_values[node, slot]
            k += 1
    for place in range(table.shape[0]):
        key = table[place, 0]
        if key:
            columns[0, k], columns[1, k] = key >> 32, key & 0xFFFFFFFF
            columns[2:, k] = table[place, 1:]
            k += 1
    return columns


@numba.njit(cache=True, nogil=True)
def count_by_lower(a: Array, b: Array, counts: Array) -> None:
    """Add to the contacts of each node those of a piece, each at its lower node; those of a node with itself do not."""
    for i in range(a.size):
        counts[min(a[i], b[i])] += a[i] != b[i]


@numba.njit(cache=True, nogil=True)
def sort_by_lower(a: Array, b: Array, sums: Array, counts: Array, faces: Array, places: Array, rows: Array) -> None:
    """Write the contacts of a piece to their lower nodes' rows, int64 (n, 4) of higher node, sum, count and face.

    places int64 (nodes): the next free row of each node; they move on.
    """
    for i in range(a.size):
        if a[i] != b[i]:
            low = min(a[i], b[i])
            row = rows[places[low]]
            row[0], row[1], row[2], row[3] = max(a[i], b[i]), sums[i], counts[i], faces[i]
            places[low] += 1


@numba.njit(cache=True, nogil=True)
def _sort_rows(rows: Array) -> None:
    """By their first column, in place. Few rows are inserted one after the other."""
    if rows.shape[0] > _FEW:
        rows[:] = rows[np.argsort(rows[:, 0])]
        return
    for i in range(1, rows.shape[0]):
        key, total, count, face = rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3]
        k = i
        while k > 0 and rows[k - 1, 0] > key:
            for column in range(4):
                rows[k, column] = rows[k - 1, column]
            k -= 1
        rows[k, 0], rows[k, 1], rows[k, 2], rows[k, 3] = key, total, count, face


@numba.njit(cache=True, nogil=True)
def sum_rows(stops: Array, rows: Array, summed: Array) -> int:
    """Put contacts of the same two nodes together: sums and counts added, of faces the smallest.

    stops int64 (nodes): behind the last row of each node; rows as of `sort_by_lower`, sorted here; summed int64 (5, n)
    becomes lower node, higher node, sum, count and face. Returns how many there are.
    """
    k, start = 0, 0
    for node in range(stops.size):
        _sort_rows(rows[start : stops[node]])
        first = k
        for i in range(start, stops[node]):
            if k > first and summed[1, k - 1] == rows[i, 0]:
                summed[2, k - 1] += rows[i, 1]
                summed[3, k - 1] += rows[i, 2]
                summed[4, k - 1] = min(summed[4, k - 1], rows[i, 3])
            else:
                summed[0, k], summed[1, k] = node, rows[i, 0]
                summed[2, k], summed[3, k], summed[4, k] = rows[i, 1], rows[i, 2], rows[i, 3]
                k += 1
        start = stops[node]
    return k


@numba.njit(cache=True, nogil=True)
def measure_fragments(labels: Array, sizes: Array, first: Array) -> None:
    """Count the voxels of each id and find its first one in the flat array. Ids appear in increasing order."""
    flat = labels.reshape(-1)
    seen = 0
    for i in range(flat.size):
        label = flat[i]
        sizes[label] += 1
        if label > seen:
            seen = label
            first[label] = i
