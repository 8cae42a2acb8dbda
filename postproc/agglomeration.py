"""Which fragments belong together, by the mean affinity of the faces where they touch?

The contact with the highest mean merges first, of equal means the one with the lowest face id, until none is above the
threshold. When two contacts become one, its mean lies between theirs: nothing that merges makes a contact better than
the best it was made of. So a contact that is the best of both its nodes merges sooner or later, whatever happens
elsewhere, and can merge now. This is what makes parts of a graph independent: a part may merge all but what touches
nodes whose contacts it does not fully know. These are frozen, and a contact that would merge with one freezes its other
node. What is left of the parts, put together, merges to what the whole graph merges to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fgnet.postproc.agglomeration_local import merge_graph
from fgnet.postproc.contact_records import UNIT
from fgnet.postproc.merge_tree import Merges
from fgnet.postproc.region_graph import RegionGraph
from fgnet.volumes.errors import DecodingError


@dataclass(frozen=True, eq=False)
class Agglomeration:
    """What a region graph, or a part of one, was merged to.

    Attributes:
        roots: int64 (nodes), the node that stands for the segment of each node.
        frozen: bool (nodes), which roots may merge further once more of the graph is known.
        graph: contacts between frozen roots, with the nodes of the original graph. Empty where none was frozen.
        merges: what made the segments, from which `merge_tree.components` tells those at any lower threshold.
    """

    roots: npt.NDArray[np.int64]
    frozen: npt.NDArray[np.bool_]
    graph: RegionGraph
    merges: Merges


def affinity_floor(threshold: float) -> int:
    """The mean affinity above which contacts merge, in units of 1/65536 of a uint8 affinity.

    Args:
        threshold: score in [0, 1], as for waterz: contacts merge while 1 - mean < threshold. It is rounded to a
            multiple of 1/16711680, so that comparing it with a mean is exact.

    Raises:
        DecodingError: if the threshold is out of range.
    """
    if not 0.0 <= threshold <= 1.0:
        raise DecodingError(f"it is {threshold}", where="threshold", remedy="give a score from 0 to 1")
    return round((1.0 - threshold) * 255 * UNIT)


def agglomerate(graph: RegionGraph, threshold: float, *, frozen: npt.NDArray[np.bool_] | None = None) -> Agglomeration:
    """Merge contacts in the strict order of their mean affinity.

    Takes about 140 bytes of memory per contact, and up to 100 more where most means are nearly equal.

    Args:
        graph: contacts with at least one face each. Not modified.
        threshold: score in [0, 1]; contacts merge while 1 - mean / 255 < threshold. 0 merges nothing.
        frozen: (nodes) bool, nodes whose contacts are not all in the graph; they do not merge. None by default.

    Returns:
        Segments, and what is left between frozen ones.

    Raises:
        DecodingError: if the threshold is out of range, frozen has another length than the nodes, or there are 2^30
            contacts or more.
    """
    floor = affinity_floor(threshold)
    if frozen is not None and frozen.shape != (graph.nodes,):
        raise DecodingError(f"it has shape {frozen.shape}", where="frozen", remedy=f"give ({graph.nodes},)")
    if graph.contacts >= 2**30:
        raise DecodingError(f"there are {graph.contacts} contacts", remedy="choose larger blocks or a smaller volume")
    held = np.zeros(graph.nodes, np.bool_) if frozen is None else frozen.astype(np.bool_)
    ends = np.empty((graph.contacts, 2), np.int32)
    ends[:, 0], ends[:, 1] = graph.lower, graph.higher
    scores = np.stack([graph.sums, graph.counts, graph.faces], axis=1)
    if floor == 255 * UNIT:
        # No mean is above 255: there is nothing to put in order.
        roots = np.arange(graph.nodes)
        left, merged = np.ones(graph.contacts, np.bool_), np.zeros(graph.contacts, np.bool_)
    else:
        parents, left, merged = merge_graph(ends, scores, floor, held)
        roots = parents.astype(np.int64)
    merges = Merges(*ends[merged].T.astype(np.int64), *scores[merged, :2].T)
    left &= held[ends[:, 0]] & held[ends[:, 1]]
    ends = ends[left].astype(np.int64)
    rest = RegionGraph(graph.nodes, np.minimum(*ends.T), np.maximum(*ends.T), *scores[left].T)
    return Agglomeration(roots, held, rest, merges)
