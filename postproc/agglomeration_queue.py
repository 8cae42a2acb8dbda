"""Merging all over a graph in the strict order of its contacts: serial, compiled, without the interpreter's lock.

Means are compared as the fractions they are, and equal ones by their face id: the order is strict, and whatever merges
scores no higher than the better of its parts. So a contact's place in the queue may be out of date, but only too early.

Contacts wait in buckets by their mean, and only those of the bucket at hand are put in exact order, in a heap. Of two
contacts that become one, the one with the earlier place stays; of two in the heap either one, which gets a new place:
what it has left at the old one is known by its number of faces, which only grows.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.contact_records import (
    AFTER,
    ALIVE,
    BUCKET,
    COUNT,
    FACE,
    FOLLOWING,
    MERGED,
    NODES,
    PLACED,
    QUEUED,
    STATE,
    SUM,
    UNIT,
    ContactRecords,
    precedes,
    unify,
)
from fgnet.postproc.contact_table import FREE, enter, fill_table, find, hash_of

Array = npt.NDArray[Any]

HEAD, TAIL, DEGREE, PARENT = range(4)
"""Columns of what is known of a node, int32: the first and the last half-edge of its list, its contacts, its parent."""

_EDGE = 3
"""Column of the heap, behind sum, count and face."""


@numba.njit(cache=True, nogil=True)
def _earlier(heap: Array, i: int, k: int) -> bool:
    return precedes(heap[i, 0], heap[i, 1], heap[i, 2], heap[k, 0], heap[k, 1], heap[k, 2])


@numba.njit(cache=True, nogil=True)
def _copy(heap: Array, source: int, target: int) -> None:
    for column in range(4):
        heap[target, column] = heap[source, column]


@numba.njit(cache=True, nogil=True)
def _push(heap: Array, length: int, scores: Array, e: int) -> Array:
    """The heap with one contact more, longer where it was full. Its last row is never one of the heap's."""
    last = heap.shape[0] - 1
    if length == last:
        longer = np.empty((2 * heap.shape[0], 4), heap.dtype)
        longer[:length] = heap[:length]
        heap, last = longer, longer.shape[0] - 1
    heap[last, SUM], heap[last, COUNT], heap[last, FACE] = scores[e, SUM], scores[e, COUNT], scores[e, FACE]
    heap[last, _EDGE] = e
    i = length
    while i > 0:
        above = (i - 1) >> 1
        if not _earlier(heap, last, above):
            break
        _copy(heap, above, i)
        i = above
    _copy(heap, last, i)
    return heap


@numba.njit(cache=True, nogil=True)
def _drop_first(heap: Array, length: int) -> None:
    """Make a heap of all but the first."""
    moved, i, below = length - 1, 0, 1
    while below < moved:
        if below + 1 < moved and _earlier(heap, below + 1, below):
            below += 1
        if not _earlier(heap, below, moved):
            break
        _copy(heap, below, i)
        i, below = below, 2 * below + 1
    _copy(heap, moved, i)


@numba.njit(cache=True, nogil=True)
def _bucket(total: int, count: int, floor: int, buckets: int) -> int:
    """Which bucket a contact above the floor falls into: never a lower one for a higher mean."""
    lowest = floor / UNIT
    place = int((total / count - lowest) * (buckets / (255.0 - lowest)))
    return int(min(max(place, 0), buckets - 1))


@numba.njit(cache=True, nogil=True)
def _append(half: int, node: int, nodes: Array, links: Array) -> None:
    tail = nodes[node, TAIL]
    if nodes[node, HEAD] < 0:
        nodes[node, HEAD] = half
    else:
        links[tail >> 1, FOLLOWING + (tail & 1)] = half
    nodes[node, TAIL] = half
    links[half >> 1, FOLLOWING + (half & 1)] = -1


@numba.njit(cache=True, nogil=True)
def _wait(e: int, bucket: int, scores: Array, links: Array, waiting: Array) -> None:
    scores[e, PLACED] = -1
    links[e, AFTER], links[e, BUCKET], waiting[bucket] = waiting[bucket], bucket, e


@numba.njit(cache=True, nogil=True)
def _place(
    e: int, current: int, floor: int, scores: Array, links: Array, waiting: Array, heap: Array, length: int
) -> tuple[Array, int]:
    """Let a contact wait, or put it in order, or neither, as its mean calls for; returns the heap and its length."""
    total, count = scores[e, SUM], scores[e, COUNT]
    if total * UNIT <= floor * count:
        links[e, STATE] = ALIVE
        return heap, length
    bucket = _bucket(total, count, floor, waiting.size)
    if bucket < current:
        _wait(e, bucket, scores, links, waiting)
        return heap, length
    heap = _push(heap, length, scores, e)
    scores[e, PLACED], links[e, BUCKET] = count, current
    return heap, length + 1


@numba.njit(cache=True, nogil=True)
def find_roots(parents: Array) -> None:
    """Lead every node to the root of its tree."""
    for node in range(parents.size):
        root = node
        while parents[root] != root:
            root = parents[root]
        i = node
        while parents[i] != root:
            above = parents[i]
            parents[i] = root
            i = above


@numba.njit(cache=True, nogil=True)
def _absorb(
    kept: int, gone: int, current: int, scores: Array, links: Array, nodes: Array, table: Array, waiting: Array
) -> int:
    """Hand the contacts of a node to another one; where both touch a third node, two become one.

    Returns how many places of the table were taken.
    """
    taken = 0
    half = nodes[gone, HEAD]
    while half >= 0:
        f, side = half >> 1, half & 1
        next_half = links[f, FOLLOWING + side]
        if links[f, STATE] & ALIVE:
            other = links[f, NODES + 1 - side]
            mixed = hash_of(kept, other)
            place, g = find(kept, other, mixed, table, links)
            survives = g < 0
            if g >= 0:
                f_waits, g_waits = (links[f, STATE] & QUEUED) != 0, (links[g, STATE] & QUEUED) != 0
                survives = f_waits and (not g_waits or links[f, BUCKET] > links[g, BUCKET])
                if f_waits and g_waits and links[f, BUCKET] == links[g, BUCKET] == current:
                    # Both are in the heap, and either may be the earlier one: g is put in order anew.
                    _wait(g, current, scores, links, waiting)
                unify(scores, links, f if survives else g, g if survives else f)
                nodes[other, DEGREE] -= 1
                nodes[kept, DEGREE] -= survives
            if survives:
                links[f, NODES + side] = kept
                taken += table[place] == FREE
                enter(place, mixed, f, table)
                _append(half, kept, nodes, links)
                nodes[kept, DEGREE] += 1
        half = next_half
    nodes[gone, HEAD] = -1
    return taken


@numba.njit(cache=True, nogil=True)
def _prepare(scores: Array, links: Array, floor: int, nodes: Array, waiting: Array) -> None:
    """Write the lists of the nodes, and those of contacts that wait in the buckets: all above the floor."""
    nodes[:, HEAD], nodes[:, DEGREE], waiting[:] = -1, 0, -1
    for node in range(nodes.shape[0]):
        nodes[node, PARENT] = node
    for e in range(links.shape[0]):
        for half in (2 * e, 2 * e + 1):
            node = links[e, NODES + (half & 1)]
            _append(half, node, nodes, links)
            nodes[node, DEGREE] += 1
        total, count = scores[e, SUM], scores[e, COUNT]
        if total * UNIT > floor * count:
            links[e, STATE] |= QUEUED
            _wait(e, _bucket(total, count, floor, waiting.size), scores, links, waiting)


def _power_of_two(first: int, least: int) -> int:
    size = first
    while size < least:
        size *= 2
    return size


def merge_contacts(records: ContactRecords, floor: int, frozen: Array) -> Array:
    """Merge the best contact, until none has a mean above the floor; what touches a frozen node freezes instead.

    Args:
        records: of live contacts; afterwards they tell which have merged, and which are left between different roots.
        floor: in units of 1 / UNIT of a uint8 affinity, below 255 * UNIT.
        frozen: bool (nodes), changed in place.

    Returns:
        The root of each node, int32.
    """
    contacts = records.links.shape[0]
    nodes = np.empty((frozen.size, 4), np.int32)
    # As large as all contacts call for, so that it is seldom made anew.
    table = np.empty(_power_of_two(16, 2 * contacts), np.uint64)
    waiting = np.empty(_power_of_two(64, min(1 << 14, contacts)), np.int32)
    _merge_contacts(records.scores, records.links, floor, frozen, nodes, table, waiting)
    parents = nodes[:, PARENT].copy()
    find_roots(parents)
    return parents


@numba.njit(cache=True, nogil=True)
def _merge_contacts(
    scores: Array, links: Array, floor: int, frozen: Array, nodes: Array, table: Array, waiting: Array
) -> None:
    _prepare(scores, links, floor, nodes, waiting)
    used = fill_table(links, table)
    heap, length, current = np.empty((64, 4), np.int64), 0, waiting.size - 1
    while current >= 0:
        # What waits in the bucket at hand is put in order first.
        e: Any = np.int64(waiting[current])
        placed = np.int64(0)
        if e >= 0:
            waiting[current] = links[e, AFTER]
        elif length > 0:
            e, placed = heap[0, _EDGE], heap[0, COUNT]
            _drop_first(heap, length)
            length -= 1
            if placed != scores[e, PLACED]:
                # It has another place now.
                continue
        else:
            current -= 1
            continue
        if not links[e, STATE] & ALIVE:
            continue
        if placed != scores[e, COUNT]:
            heap, length = _place(e, current, floor, scores, links, waiting, heap, length)
            continue
        # Few contacts are handed over to many.
        end = int(nodes[links[e, NODES], DEGREE] < nodes[links[e, NODES + 1], DEGREE])
        kept, gone = links[e, NODES + end], links[e, NODES + 1 - end]
        if frozen[kept] or frozen[gone]:
            frozen[kept] = frozen[gone] = True
            continue
        nodes[gone, PARENT], links[e, STATE] = kept, MERGED
        nodes[kept, DEGREE] -= 1
        if 3 * (used + nodes[gone, DEGREE]) > 2 * table.size:
            # Mostly contacts of nodes that are gone: start again with what is left.
            used = fill_table(links, table)
        used += _absorb(kept, gone, current, scores, links, nodes, table, waiting)
