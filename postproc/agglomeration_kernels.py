"""The inner loops of agglomeration: serial, compiled, without the interpreter's lock.

Means are compared as the fractions they are, and equal ones by their face id: the order is strict, and whatever merges
scores no higher than the better of its parts. So an entry of the queue may be out of date, but only too early.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.region_graph_kernels import place_of

Array = npt.NDArray[Any]

UNIT = 1 << 16
"""What a difference of 1 between uint8 affinities is in units of the threshold."""

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
def _earlier(entries: Array, e: int, f: int) -> bool:
    return precedes(entries[e, 0], entries[e, 1], entries[e, 2], entries[f, 0], entries[f, 1], entries[f, 2])


@numba.njit(cache=True, nogil=True)
def _push(heap: Array, length: int, entries: Array, edge: int) -> Array:
    """The heap with one edge more, longer where it was full."""
    if length == heap.size:
        longer = np.empty(2 * heap.size, heap.dtype)
        longer[:length] = heap
        heap = longer
    i = length
    while i > 0:
        above = (i - 1) >> 1
        if not _earlier(entries, edge, heap[above]):
            break
        heap[i] = heap[above]
        i = above
    heap[i] = edge
    return heap


@numba.njit(cache=True, nogil=True)
def _pop(heap: Array, length: int, entries: Array) -> int:
    """The first edge; of the others, `length - 1`, the rest of the heap is made."""
    first, moved = heap[0], heap[length - 1]
    i, below = 0, 1
    while below < length - 1:
        if below + 1 < length - 1 and _earlier(entries, heap[below + 1], heap[below]):
            below += 1
        if not _earlier(entries, heap[below], moved):
            break
        heap[i] = heap[below]
        i, below = below, 2 * below + 1
    heap[i] = moved
    return int(first)


@numba.njit(cache=True, nogil=True)
def _key(a: int, b: int) -> Any:
    return np.int64(min(a, b)) << 32 | np.int64(max(a, b))


@numba.njit(cache=True, nogil=True)
def _find(keys: Array, key: int) -> Any:
    place = place_of(key, keys.size)
    while keys[place] != 0 and keys[place] != key:
        place = (place + 1) & (keys.size - 1)
    return place


@numba.njit(cache=True, nogil=True)
def _fill_table(ends: Array, alive: Array, keys: Array, edges: Array) -> int:
    """Make a hash table from pairs of nodes to live edges; returns how many there are."""
    keys[:] = 0
    count = 0
    for e in range(alive.size):
        if alive[e]:
            key = _key(ends[e, 0], ends[e, 1])
            place = _find(keys, key)
            keys[place], edges[place] = key, e
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _bucket(score: Array, floor: int, buckets: int) -> int:
    """Which bucket a contact above the floor falls into: never a lower one for a higher mean."""
    lowest = floor / UNIT
    place = int((score[0] / score[1] - lowest) * (buckets / (255.0 - lowest)))
    return int(min(max(place, 0), buckets - 1))


@numba.njit(cache=True, nogil=True)
def _append(half: int, node: int, heads: Array, tails: Array, following: Array) -> None:
    if heads[node] < 0:
        heads[node] = half
    else:
        following[tails[node]] = half
    tails[node] = half
    following[half] = -1


@numba.njit(cache=True, nogil=True)
def _unify(scores: Array, stays: int, dead: int, alive: Array) -> None:
    scores[stays, 0] += scores[dead, 0]
    scores[stays, 1] += scores[dead, 1]
    scores[stays, 2] = min(scores[stays, 2], scores[dead, 2])
    alive[dead] = False


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
def _wait(e: int, bucket: int, waiting: Array, after: Array) -> None:
    after[e], waiting[bucket] = waiting[bucket], e


@numba.njit(cache=True, nogil=True)
def _absorb(
    kept: int,
    gone: int,
    ends: Array,
    scores: Array,
    alive: Array,
    entries: Array,
    queued: Array,
    lists: tuple[Array, Array, Array, Array],
    keys: Array,
    of_key: Array,
) -> int:
    """Hand the contacts of a node to another one; where both touch a third node, two become one.

    Returns how many places of the hash table were taken.
    """
    heads, tails, following, degrees = lists
    taken = 0
    half = heads[gone]
    while half >= 0:
        next_half, f, side = following[half], half >> 1, half & 1
        if alive[f]:
            other = ends[f, 1 - side]
            key = _key(kept, other)
            place = _find(keys, key)
            g = of_key[place] if keys[place] == key and alive[of_key[place]] else -1
            survives = g < 0
            if g >= 0:
                # The entry of the one that survives stands for both, so it has to be the earlier one.
                survives = queued[f] and (not queued[g] or _earlier(entries, f, g))
                _unify(scores, f if survives else g, g if survives else f, alive)
                degrees[other] -= 1
                degrees[kept] -= survives
            if survives:
                ends[f, side] = kept
                taken += keys[place] == 0
                keys[place], of_key[place] = key, f
                _append(half, kept, heads, tails, following)
                degrees[kept] += 1
        half = next_half
    heads[gone] = -1
    return taken


@numba.njit(cache=True, nogil=True)
def _fill_lists(ends: Array, lists: tuple[Array, Array, Array, Array]) -> None:
    """Write the first and last half-edge of each node, the one that follows each, and how many a node has.

    A half-edge is 2 * edge + which end the node is.
    """
    heads, tails, following, degrees = lists
    heads[:], tails[:], degrees[:] = -1, -1, 0
    for half in range(ends.size):
        node = ends[half >> 1, half & 1]
        _append(half, node, heads, tails, following)
        degrees[node] += 1


@numba.njit(cache=True, nogil=True)
def _fill_queue(scores: Array, floor: int, waiting: Array, after: Array, queued: Array) -> None:
    """Write the first contact that waits in each bucket, the one after each, and which wait: those above the floor."""
    waiting[:] = -1
    for e in range(scores.shape[0]):
        queued[e] = scores[e, 0] * UNIT > floor * scores[e, 1]
        if queued[e]:
            _wait(e, _bucket(scores[e], floor, waiting.size), waiting, after)


def _power_of_two(first: int, least: int) -> int:
    size = first
    while size < least:
        size *= 2
    return size


def merge_contacts(ends: Array, scores: Array, floor: int, frozen: Array) -> tuple[Array, Array, Array]:
    """Merge the best contact, until none has a mean above the floor; what touches a frozen node freezes instead.

    ends (edges, 2) int32, scores (edges, 3) int64 of sum, count and smallest face, frozen (nodes) bool: all are
    changed in place. The floor is in units of 1 / UNIT of a uint8 affinity, below 255 * UNIT.

    Contacts wait in buckets by their mean; only those of the bucket at hand are put in exact order. Each live contact
    has at most one entry there, never behind what its score calls for.

    Returns the root of each node, int32; which contacts are left between different roots, bool; and which ones merged,
    bool: their ends and scores stay those of that moment.
    """
    nodes, edges = frozen.size, ends.shape[0]
    parents, alive = np.arange(nodes, dtype=np.int32), np.ones(edges, np.bool_)
    merged = np.zeros(edges, np.bool_)
    # Made here, large arrays lie in large pages of memory; made by compiled code they would not.
    per_node = np.empty((3, nodes), np.int32)
    lists = (per_node[0], per_node[1], np.empty(2 * edges, np.int32), per_node[2])
    # As large as all edges call for, so that it is seldom made anew.
    size = _power_of_two(16, 2 * edges)
    table = (np.empty(size, np.int64), np.empty(size, np.int32))
    waiting = np.empty(_power_of_two(64, min(1 << 14, edges)), np.int32)
    queue = (waiting, np.empty(edges, np.int32), np.empty(edges, np.bool_), np.empty((edges, 3), np.int64))
    _merge_contacts(ends, scores, floor, frozen, parents, alive, merged, lists, table, queue)
    return parents, alive, merged


@numba.njit(cache=True, nogil=True)
def _merge_contacts(
    ends: Array,
    scores: Array,
    floor: int,
    frozen: Array,
    parents: Array,
    alive: Array,
    merged: Array,
    lists: tuple[Array, Array, Array, Array],
    table: tuple[Array, Array],
    queue: tuple[Array, Array, Array, Array],
) -> None:
    degrees, keys, of_key = lists[3], table[0], table[1]
    waiting, after, queued, entries = queue
    _fill_lists(ends, lists)
    _fill_queue(scores, floor, waiting, after, queued)
    used = _fill_table(ends, alive, keys, of_key)
    entries[:] = scores
    heap, length, current = np.empty(64, np.int32), 0, waiting.size - 1
    while current >= 0:
        # What waits in the bucket at hand is put in order first.
        from_bucket = waiting[current] >= 0
        if from_bucket:
            e = waiting[current]
            waiting[current] = after[e]
        elif length > 0:
            e = _pop(heap, length, entries)
            length -= 1
        else:
            current -= 1
            continue
        if not alive[e]:
            continue
        if from_bucket or entries[e, 1] != scores[e, 1]:
            entries[e] = scores[e]
            queued[e] = scores[e, 0] * UNIT > floor * scores[e, 1]
            bucket = _bucket(scores[e], floor, waiting.size)
            if queued[e] and bucket < current:
                _wait(e, bucket, waiting, after)
            elif queued[e]:
                heap = _push(heap, length, entries, e)
                length += 1
            continue
        # Few contacts are handed over to many.
        end = int(degrees[ends[e, 0]] < degrees[ends[e, 1]])
        kept, gone = ends[e, end], ends[e, 1 - end]
        if frozen[kept] or frozen[gone]:
            frozen[kept] = frozen[gone] = True
            continue
        parents[gone], alive[e], merged[e] = kept, False, True
        degrees[kept] -= 1
        if 3 * (used + degrees[gone]) > 2 * keys.size:
            # Mostly pairs whose nodes are gone: start again with what is left.
            used = _fill_table(ends, alive, keys, of_key)
        used += _absorb(kept, gone, ends, scores, alive, entries, queued, lists, keys, of_key)
    find_roots(parents)
