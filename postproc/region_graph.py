"""Which fragments touch, with how many faces, and how high are the affinities there?

A face is a pair of neighbouring voxels. Per pair of fragments the graph holds the sum of the affinities of their faces,
their number, and the smallest of their ids: sums and minima, so the pieces of blocks combine to exactly what the whole
volume gives, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.postproc.region_graph_kernels import (
    SLOTS,
    count_by_lower,
    count_contacts,
    list_contacts,
    measure_fragments,
    sort_by_lower,
    sum_rows,
)
from fgnet.postproc.watershed import require_uint8
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Triple

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RegionGraph:
    """Nodes 0 .. nodes - 1 and their contacts, of which each pair of nodes has at most one.

    Attributes:
        nodes: number of nodes; those that touch nothing, background among them, are simply without contacts.
        lower: int64, the lower node of each contact.
        higher: int64, the higher node.
        sums: int64, sum of the uint8 affinities of the faces.
        counts: int64, number of faces.
        faces: int64, smallest face id: 3 * (z * height + y) * width + x) + channel, of the face's later voxel.
    """

    nodes: int
    lower: Ints
    higher: Ints
    sums: Ints
    counts: Ints
    faces: Ints

    @property
    def contacts(self) -> int:
        """Number of contacts."""
        return self.lower.size

    @property
    def columns(self) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """Lower, higher, sums, counts and faces."""
        return self.lower, self.higher, self.sums, self.counts, self.faces

    def select(self, which: npt.NDArray[Any]) -> RegionGraph:
        """The graph with some of its contacts, by mask or index."""
        return RegionGraph(self.nodes, *(column[which] for column in self.columns))


def face_id(voxel: Sequence[int], shape: Sequence[int], channel: int) -> int:
    """Number of the face between a voxel and the one before it along a channel's axis, in a volume of this shape."""
    z, y, x = voxel
    return 3 * ((z * shape[1] + y) * shape[2] + x) + channel


def region_graph(
    affinities: npt.NDArray[np.uint8],
    fragments: npt.NDArray[np.uint32],
    count: int,
    *,
    start: Triple = (0, 0, 0),
    shape: Triple | None = None,
) -> RegionGraph:
    """Collect the contacts of the fragments of a block.

    Faces to background do not count; faces of affinity 0 do. Takes up to 224 bytes of memory per fragment.

    Args:
        affinities: (3, z, y, x) uint8 of the block. Those of its first planes, which lead out of it, are not read.
        fragments: (z, y, x) uint32 ids 0 .. count, 0 is background.
        count: the highest id.
        start: first voxel (z, y, x) of the block in the volume.
        shape: (z, y, x) of the volume, by which faces are numbered; by default that of the block.

    Returns:
        The graph, with nodes 0 .. count.

    Raises:
        DecodingError: if affinities or fragments are not as described.
    """
    require_uint8(affinities)
    if fragments.shape != affinities.shape[1:] or fragments.dtype != np.uint32:
        raise DecodingError(
            f"fragments have shape {fragments.shape} and dtype {fragments.dtype}",
            remedy=f"give uint32 of shape {affinities.shape[1:]}",
        )
    if not 0 <= count < 2**31:
        raise DecodingError(f"there are {count} fragments", remedy="choose smaller blocks")
    volume = shape or fragments.shape
    # Pages of zeros that no fragment writes to cost nothing.
    ids, values = np.zeros((count + 1, SLOTS), np.uint32), np.zeros((count + 1, SLOTS, 3), np.int64)
    steps = 3 * volume[1] * volume[2], 3 * volume[2]
    table = count_contacts(affinities, fragments, face_id(start, volume, 0), *steps, ids, values)
    return RegionGraph(count + 1, *list_contacts(ids, values, table))


def merge_graphs(nodes: int, pieces: Sequence[tuple[Ints, Ints, Ints, Ints, Ints]]) -> RegionGraph:
    """Combine pieces of a region graph: sums and counts are added, of faces the smallest stays.

    Args:
        nodes: number of nodes of the result, below 2^31.
        pieces: columns as in `RegionGraph.columns`, ends in any order; contacts of a node with itself are dropped.

    Returns:
        The graph, its contacts sorted by their nodes.
    """
    places = np.zeros(nodes + 1, np.int64)
    for a, b, *_ in pieces:
        count_by_lower(a, b, places[1:])
    np.cumsum(places, out=places)
    size, places = int(places[-1]), places[:-1]
    rows, summed = np.empty((size, 4), np.int64), np.empty((5, size), np.int64)
    for piece in pieces:
        sort_by_lower(*piece, places, rows)
    # Each node's next free row is now behind its last one.
    count = sum_rows(places, rows, summed)
    return RegionGraph(nodes, *summed[:, :count].copy())


def fragment_extents(fragments: npt.NDArray[np.uint32], count: int) -> tuple[Ints, Ints]:
    """Measure fragments that are numbered in the order of their first voxels.

    Args:
        fragments: (z, y, x) uint32 ids 0 .. count, contiguous.
        count: the highest id.

    Returns:
        int64 (count + 1): voxels of each id, background among them; and the place of its first voxel in the flat array.
    """
    sizes, first = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    measure_fragments(fragments, sizes, first)
    return sizes, first
