"""Which objects are cut apart, which are merged, and what does each cost?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fgnet.postproc.overlaps import Counts, Ids, Overlaps
from fgnet.postproc.protocols import Protocol


@dataclass(frozen=True)
class ObjectScore:
    """A ground-truth object, over its scored voxels.

    Attributes:
        object: its id.
        voxels: how many it has.
        segments: how many segments share voxels with it; segment 0 is one of them, or, where the protocol takes it as
            singletons for VOI, as many as its voxels.
        voi_split: bits that its being cut apart adds to the VOI's split part; those of all objects sum to it.
        voi_merge: bits that its being merged adds to the merge part; those of all objects sum to it.
        largest_segment: that shares most voxels with it, 0 apart; 0 where there is none but that.
        largest_voxels: that they share.
        background: its voxels in segment 0.
    """

    object: int
    voxels: int
    segments: int
    voi_split: float
    voi_merge: float
    largest_segment: int
    largest_voxels: int
    background: int


@dataclass(frozen=True)
class Pieces:
    """An object and the two segments that share most with it, or a segment and its two largest objects.

    Attributes:
        whole: id of the object that is cut apart, or of the segment that merges.
        parts: ids of the two largest parts, the larger first.
        voxels: of the two parts.
        count: how many parts there are in all; segment 0 is none.
    """

    whole: int
    parts: tuple[int, int]
    voxels: tuple[int, int]
    count: int


def object_scores(overlaps: Overlaps, rules: Protocol) -> list[ObjectScore]:
    """What each object has and costs, the costliest first.

    Args:
        overlaps: the pairs that are scored, see `overlaps.scored`.
        rules: what becomes of segment 0.
    """
    objects, of_pair = np.unique(overlaps.objects, return_inverse=True)
    segments, segment_of_pair = np.unique(overlaps.segments, return_inverse=True)
    shared = overlaps.counts.astype(np.float64)
    sizes = np.bincount(of_pair, shared, objects.size)
    segment_sizes = np.bincount(segment_of_pair, shared, segments.size)
    background = overlaps.segments == 0
    alone = background & rules.singletons_in_voi

    # A singleton is one voxel of its object, and merges nothing.
    split = shared * (np.log2(sizes)[of_pair] - np.where(alone, 0.0, np.log2(shared))) / shared.sum()
    merge = shared * (np.log2(segment_sizes)[segment_of_pair] - np.log2(shared)) / shared.sum()
    splits = np.bincount(of_pair, split, objects.size)
    merges = np.bincount(of_pair, np.where(alone, 0.0, merge), objects.size)
    counts = np.bincount(of_pair, np.where(alone, shared, 1), objects.size)
    in_background = np.bincount(of_pair, shared * background, objects.size)

    order = np.lexsort((overlaps.segments, np.where(background, 1, -shared), of_pair))
    firsts = order[np.flatnonzero(np.diff(of_pair[order], prepend=-1))]
    held = ~background[firsts]
    largest, voxels = overlaps.segments[firsts] * held, overlaps.counts[firsts] * held
    rows = [
        ObjectScore(int(i), int(n), int(k), float(s), float(m), int(j), int(v), int(b))
        for i, n, k, s, m, j, v, b in zip(
            objects, sizes, counts, splits, merges, largest, voxels, in_background, strict=True
        )
    ]
    return sorted(rows, key=lambda row: (-(row.voi_split + row.voi_merge), row.object))


def largest_splits(overlaps: Overlaps, number: int) -> list[Pieces]:
    """The objects of which a second segment holds most voxels, largest first; segment 0 is none.

    Args:
        overlaps: the pairs that are scored.
        number: at most so many.
    """
    cut = overlaps.where(overlaps.segments != 0)
    return _largest(cut.objects, cut.segments, cut.counts, number)


def largest_merges(overlaps: Overlaps, number: int) -> list[Pieces]:
    """The segments of which a second object holds most voxels, largest first; segment 0 is none.

    Args:
        overlaps: the pairs that are scored.
        number: at most so many.
    """
    joined = overlaps.where(overlaps.segments != 0)
    return _largest(joined.segments, joined.objects, joined.counts, number)


def _largest(wholes: Ids, parts: Ids, counts: Counts, number: int) -> list[Pieces]:
    """Of the wholes with two parts or more, those whose second part is largest."""
    order = np.lexsort((parts, -counts, wholes))
    wholes, parts, counts = wholes[order], parts[order], counts[order]
    starts = np.flatnonzero(np.concatenate(([True], wholes[1:] != wholes[:-1]))) if wholes.size else np.empty(0, int)
    many: npt.NDArray[np.int64] = np.diff(starts, append=wholes.size)
    starts, many = starts[many > 1], many[many > 1]
    worst = np.lexsort((wholes[starts], -counts[starts + 1]))[:number]
    return [
        Pieces(int(wholes[i]), (int(parts[i]), int(parts[i + 1])), (int(counts[i]), int(counts[i + 1])), int(count))
        for i, count in zip(starts[worst].tolist(), many[worst].tolist(), strict=True)
    ]
