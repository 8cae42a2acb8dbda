"""Which merges made a segment, and what is left of them at a lower threshold?

Contacts merge in the order of their means, and what merges makes no contact better than the best it was made of: so no
merge has a higher mean than those that made its two nodes. The merges above some floor are therefore all that happen
with that floor as the threshold, and one agglomeration at the highest threshold serves all lower ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.contact_records import UNIT

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Merges:
    """Pairs of segments that became one, in any order.

    Attributes:
        first: int64, a node of the one segment; any of its nodes will do.
        second: int64, a node of the other.
        sums: int64, sum of the uint8 affinities of the faces between the two, at that moment.
        counts: int64, number of these faces.
    """

    first: Ints
    second: Ints
    sums: Ints
    counts: Ints

    @property
    def columns(self) -> tuple[Ints, Ints, Ints, Ints]:
        """First and second nodes, sums and counts."""
        return self.first, self.second, self.sums, self.counts

    def above(self, floor: int) -> Ints:
        """The pairs, int64 (2, n), whose mean is above a floor of `agglomeration.affinity_floor`; compared exactly."""
        merged = self.sums * UNIT > floor * self.counts
        return np.stack([self.first[merged], self.second[merged]])


def components(nodes: int, pairs: Ints) -> tuple[int, Ints]:
    """Find what pairs of nodes connect.

    Args:
        nodes: number of nodes.
        pairs: int64 (2, n).

    Returns:
        How many components there are, and the one of each node, int64; numbered from 0 in the order of first nodes.
    """
    parents = np.arange(nodes)
    return int(_connect(parents, pairs[0], pairs[1])), parents


def gather(parts: Ints, wholes: int, voxels: Ints, first: Ints) -> tuple[Ints, Ints]:
    """Add up the voxels of the parts of each whole, and find its first voxel.

    Args:
        parts: int64, the whole that each part belongs to.
        wholes: how many there are.
        voxels: int64, of each part; a part without any has no first voxel.
        first: int64, first voxel of each part.

    Returns:
        int64 (wholes): voxels, and first voxel; the largest int64 where there are none.
    """
    total, lowest = np.zeros(wholes, np.int64), np.full(wholes, np.iinfo(np.int64).max)
    _gather(parts, voxels, first, total, lowest)
    return total, lowest


@numba.njit(cache=True, nogil=True)
def _root(parents: npt.NDArray[Any], node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@numba.njit(cache=True, nogil=True)
def _connect(parents: npt.NDArray[Any], first: npt.NDArray[Any], second: npt.NDArray[Any]) -> int:
    for i in range(first.size):
        a, b = _root(parents, first[i]), _root(parents, second[i])
        # The root of a component is its first node.
        parents[max(a, b)] = min(a, b)
    count = 0
    for node in range(parents.size):
        above = parents[node]
        if above == node:
            parents[node] = count
            count += 1
        else:
            # Nodes before this one hold their number already, and a root is before what it stands for.
            parents[node] = parents[above]
    return count


@numba.njit(cache=True, nogil=True)
def _gather(
    parts: npt.NDArray[Any],
    voxels: npt.NDArray[Any],
    first: npt.NDArray[Any],
    total: npt.NDArray[Any],
    lowest: npt.NDArray[Any],
) -> None:
    for i in range(parts.size):
        if voxels[i]:
            total[parts[i]] += voxels[i]
            lowest[parts[i]] = min(lowest[parts[i]], first[i])
