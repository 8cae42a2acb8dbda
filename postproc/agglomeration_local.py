"""Merging what is the best of both its nodes, wherever that is: most of a graph, and close together in memory.

From each node the way leads to the best of its contacts, from there to the best of that node's, until two nodes are
each other's best: these merge (see `agglomeration`), and the way goes on from where it came. The order in which such
pairs merge changes nothing. Nodes with very many contacts are left to `merge_contacts`, and so is what would merge with
them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.agglomeration_queue import find_roots, merge_contacts
from fgnet.postproc.contact_records import (
    ALIVE,
    COUNT,
    FACE,
    MERGED,
    NODES,
    STATE,
    SUM,
    UNIT,
    empty_records,
    precedes,
)

Array = npt.NDArray[Any]

MOST = 256
"""Contacts of a node of which the best one is still found by looking at all; measured, anything from 100 on will do."""

_OPEN, _WAITS, _FINISHED = 0, 1, 2


@numba.njit(cache=True, nogil=True)
def _best(node: int, scores: Array, alive: Array, heads: Array, following: Array) -> int:
    """The contact of a node that merges first, -1 if it has none; those that are gone are taken from its list."""
    best, half, before = -1, heads[node], -1
    while half >= 0:
        e, after = half >> 1, following[half]
        if not alive[e]:
            if before < 0:
                heads[node] = after
            else:
                following[before] = after
        else:
            before = half
            if best < 0 or precedes(
                scores[e, 0], scores[e, 1], scores[e, 2], scores[best, 0], scores[best, 1], scores[best, 2]
            ):
                best = e
        half = after
    return best


@numba.njit(cache=True, nogil=True)
def _absorb(
    kept: int,
    gone: int,
    ends: Array,
    scores: Array,
    alive: Array,
    heads: Array,
    following: Array,
    degrees: Array,
    contact: Array,
) -> None:
    """Hand the contacts of a node to another one; where both touch a third node, two become one.

    `contact` is -1 for all nodes, and is left so.
    """
    half = heads[kept]
    while half >= 0:
        if alive[half >> 1]:
            contact[ends[half >> 1, 1 - (half & 1)]] = half >> 1
        half = following[half]
    half = heads[gone]
    while half >= 0:
        after, e, side = following[half], half >> 1, half & 1
        if alive[e]:
            other = ends[e, 1 - side]
            known = contact[other]
            if known >= 0:
                scores[known, 0] += scores[e, 0]
                scores[known, 1] += scores[e, 1]
                scores[known, 2] = min(scores[known, 2], scores[e, 2])
                alive[e] = False
                degrees[other] -= 1
            else:
                ends[e, side] = kept
                following[half], heads[kept] = heads[kept], half
                degrees[kept] += 1
        half = after
    heads[gone] = -1
    half = heads[kept]
    while half >= 0:
        contact[ends[half >> 1, 1 - (half & 1)]] = -1
        half = following[half]


@numba.njit(cache=True, nogil=True)
def _merge_near(
    ends: Array,
    scores: Array,
    floor: int,
    frozen: Array,
    most: int,
    parents: Array,
    alive: Array,
    merged: Array,
    following: Array,
    work: Array,
) -> Array:
    """Merge what can be merged by looking at few contacts; returns the state of each root.

    following (2 * edges) and work (4, nodes), int32, are written over.
    """
    nodes = frozen.size
    heads, degrees, contact, way = work[0], work[1], work[2], work[3]
    heads[:], degrees[:], contact[:] = -1, 0, -1
    for half in range(ends.size):
        node = ends[half >> 1, half & 1]
        following[half], heads[node] = heads[node], half
        degrees[node] += 1
    state = np.full(nodes, _OPEN, np.uint8)
    for start in range(nodes):
        way[0] = start
        length = 1 if parents[start] == start and not frozen[start] and state[start] == _OPEN else 0
        while length:
            node = way[length - 1]
            if frozen[node]:
                # Each one before would merge with the one after.
                frozen[way[:length]] = True
                break
            if degrees[node] > most or state[node] == _WAITS:
                state[way[:length]] = _WAITS
                break
            e = _best(node, scores, alive, heads, following)
            if e < 0 or scores[e, 0] * UNIT <= floor * scores[e, 1]:
                # No contact of it will ever be better.
                state[node] = _FINISHED
                break
            other = ends[e, 0] if ends[e, 1] == node else ends[e, 1]
            if length < 2 or way[length - 2] != other:
                way[length] = other
                length += 1
                continue
            kept, gone = (node, other) if degrees[node] > degrees[other] else (other, node)
            parents[gone], alive[e], merged[e] = kept, False, True
            degrees[kept] -= 1
            _absorb(kept, gone, ends, scores, alive, heads, following, degrees, contact)
            length -= 2
            if length == 0:
                way[0], length = kept, 1
    return state


@numba.njit(cache=True, nogil=True)
def _number_rest(ends: Array, frozen: Array, state: Array, alive: Array, rest: Array, work: Array) -> tuple[int, int]:
    """Find what is left to merge, as a graph of its own: what is between frozen nodes stays as it is.

    rest (edges) int32 becomes its contacts, work (4, nodes) int32 the number there of each node, and its nodes.
    Returns how many contacts and nodes there are.
    """
    number, nodes, many, count = work[0], work[1], 0, 0
    number[:] = -1
    for e in range(ends.shape[0]):
        a, b = ends[e, 0], ends[e, 1]
        if not alive[e] or (frozen[a] and frozen[b]):
            continue
        if state[a] == _FINISHED or state[b] == _FINISHED:
            alive[e] = False
            continue
        rest[many] = e
        many += 1
        for node in (a, b):
            if number[node] < 0:
                number[node], nodes[count] = count, node
                count += 1
    return many, count


@numba.njit(cache=True, nogil=True)
def _copy_rest(rest: Array, number: Array, ends: Array, scores: Array, own_scores: Array, links: Array) -> None:
    for i in range(rest.size):
        e = rest[i]
        links[i, NODES], links[i, NODES + 1] = number[ends[e, 0]], number[ends[e, 1]]
        own_scores[i, SUM], own_scores[i, COUNT], own_scores[i, FACE] = scores[e, 0], scores[e, 1], scores[e, 2]
        links[i, STATE] = ALIVE


@numba.njit(cache=True, nogil=True)
def _copy_back(
    rest: Array,
    nodes: Array,
    own_scores: Array,
    links: Array,
    ends: Array,
    scores: Array,
    alive: Array,
    merged: Array,
) -> None:
    for i in range(rest.size):
        e = rest[i]
        ends[e, 0], ends[e, 1] = nodes[links[i, NODES]], nodes[links[i, NODES + 1]]
        scores[e, 0], scores[e, 1], scores[e, 2] = own_scores[i, SUM], own_scores[i, COUNT], own_scores[i, FACE]
        alive[e], merged[e] = (links[i, STATE] & ALIVE) != 0, (links[i, STATE] & MERGED) != 0


def merge_graph(ends: Array, scores: Array, floor: int, frozen: Array, most: int = MOST) -> tuple[Array, Array, Array]:
    """Merge the best contact, until none has a mean above the floor; what touches a frozen node freezes instead.

    Nodes of more than `most` contacts are merged in the order of a queue, and what would merge with them. Contacts of
    nodes that are finished, which no one will ask for, are not left.

    Args:
        ends: (contacts, 2) int32, changed in place, as all arrays are.
        scores: (contacts, 3) int64 of sum, count and smallest face.
        floor: in units of 1 / UNIT of a uint8 affinity, below 255 * UNIT.
        frozen: (nodes) bool.
        most: contacts of a node, all of which are looked at for the best.

    Returns:
        The root of each node, int32; which contacts are left between different roots, bool; and which ones merged,
        bool: their ends and scores stay those of that moment.
    """
    parents, alive = np.arange(frozen.size, dtype=np.int32), np.ones(ends.shape[0], np.bool_)
    merged = np.zeros(ends.shape[0], np.bool_)
    # See `empty_records` for why arrays are made here.
    following, work = np.empty(ends.size, np.int32), np.empty((4, frozen.size), np.int32)
    state = _merge_near(ends, scores, floor, frozen, most, parents, alive, merged, following, work)
    many, count = _number_rest(ends, frozen, state, alive, following, work)
    rest, nodes = following[:many].copy(), work[1, :count]
    del following
    records, own_frozen = empty_records(many), frozen[nodes]
    _copy_rest(rest, work[0], ends, scores, records.scores, records.links)
    own_parents = merge_contacts(records, floor, own_frozen)
    parents[nodes], frozen[nodes] = nodes[own_parents], own_frozen
    _copy_back(rest, nodes, records.scores, records.links, ends, scores, alive, merged)
    find_roots(parents)
    return parents, alive, merged
