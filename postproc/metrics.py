"""How far is a segmentation from the ground truth?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.postproc.overlaps import Overlaps, Slab, count_overlaps, scored
from fgnet.postproc.protocols import Protocol, ProtocolName, protocol_named

# Voxels that are counted at a time.
_SLAB = 1 << 24


@dataclass(frozen=True)
class Scores:
    """Variation of information and adapted Rand error, and what they were computed over.

    Attributes:
        voi_split: H(segmentation | ground truth) in bits: objects cut apart. 0 is perfect.
        voi_merge: H(ground truth | segmentation) in bits: objects merged. 0 is perfect.
        arand: adapted Rand error, 1 - F of the pair precision and recall. 0 is perfect.
        precision: of all pairs of voxels in one segment, the share that lies in one object.
        recall: of all pairs of voxels in one object, the share that lies in one segment.
        voxels: number of voxels scored.
        segments: number of segments among these voxels.
        objects: number of ground-truth ids among these voxels.
    """

    voi_split: float
    voi_merge: float
    arand: float
    precision: float
    recall: float
    voxels: int
    segments: int
    objects: int

    @property
    def voi(self) -> float:
        """Sum of the split and the merge part, in bits."""
        return self.voi_split + self.voi_merge

    @property
    def cremi_score(self) -> float:
        """Geometric mean of VOI and adapted Rand error, by which the CREMI challenge ranks; 0 is perfect."""
        return math.sqrt(self.voi * max(0.0, self.arand))


def score(
    segmentation: npt.NDArray[Any],
    ground_truth: npt.NDArray[Any],
    *,
    protocol: ProtocolName = "standard",
    ignore: Sequence[int] | None = None,
    min_size: int = 0,
    border_mask: npt.NDArray[np.bool_] | None = None,
) -> Scores:
    """Score a segmentation over the voxels whose ground truth is not ignored.

    Equal to scikit-image's `variation_of_information` over those voxels and to its `adapted_rand_error` with
    `ignore_labels`, where these are defined; its version 0.26 returns precision and recall in each other's place.
    Sources: Meila 2007 (VOI); Arganda-Carreras et al. 2015 (ARAND).

    Args:
        segmentation: (z, y, x) integers. Segment 0 is a segment like any other, or, where the protocol says so, each
            of its voxels is a segment of its own.
        ground_truth: integers of the same shape.
        protocol: "standard" (ignores id 0), "snemi3d" (also takes segment 0 as singletons) or "cremi" (id 0 is scored);
            all ignore the largest uint64, and -1, which say that nobody labelled a voxel.
        ignore: ground-truth ids not to score, instead of those of the protocol.
        min_size: ground-truth ids with fewer voxels in the volume are ignored, in voxels.
        border_mask: bool of the same shape, True where a voxel is not to be scored (see `protocols.border_mask`).

    Returns:
        The scores.

    Raises:
        VolumeError: if shapes differ, ids are no integers, the protocol is unknown or no voxel is left to score.
    """
    rules = protocol_named(protocol)
    ignored = rules.ignore if ignore is None else ignore
    slabs = _slabs(segmentation, ground_truth, border_mask)
    return scores_of(scored(count_overlaps(slabs), ignored, min_size), rules)


def _slabs(
    segmentation: npt.NDArray[Any], ground_truth: npt.NDArray[Any], masked: npt.NDArray[np.bool_] | None
) -> Iterator[Slab]:
    """Both arrays a few million voxels at a time; as a whole where shapes differ, which is refused there."""
    shapes = {segmentation.shape, ground_truth.shape} | ({masked.shape} if masked is not None else set())
    step = max(1, _SLAB // max(1, math.prod(ground_truth.shape[1:])))
    if len(shapes) > 1 or ground_truth.ndim == 0 or ground_truth.shape[0] <= step:
        yield Slab(ground_truth, segmentation, masked)
        return
    for first in range(0, ground_truth.shape[0], step):
        part = slice(first, first + step)
        yield Slab(ground_truth[part], segmentation[part], None if masked is None else masked[part])


def scores_of(overlaps: Overlaps, rules: Protocol) -> Scores:
    """Score the pairs of objects and segments that are to be scored.

    Args:
        overlaps: see `overlaps.scored`.
        rules: what becomes of segment 0.
    """
    objects, segments = (_totals(ids, overlaps.counts) for ids in (overlaps.objects, overlaps.segments))
    shared = overlaps.counts.astype(np.float64)
    background = overlaps.segments == 0
    alone = float(shared[background].sum())
    voxels = int(objects.sum())

    # Of segment 0 as singletons nothing is left but their number: 1 log2(1) = 0, and a voxel alone is in no pair.
    apart = rules.singletons_in_voi and alone > 0
    joint = _entropy(shared[~background] if apart else shared) / voxels
    of_segments = _entropy(_without(segments, alone) if apart else segments) / voxels
    of_objects = _entropy(objects) / voxels
    # Ordered pairs of distinct voxels; a volume without such pairs contains no error of that kind.
    object_pairs = float(objects @ objects) - voxels
    paired, joined, pairing = (
        (shared[~background], _without(segments, alone), voxels - alone)
        if rules.singletons_in_pairs
        else (shared, segments, voxels)
    )
    shared_pairs, segment_pairs = float(paired @ paired) - pairing, float(joined @ joined) - pairing
    pairs = object_pairs + segment_pairs
    return Scores(
        voi_split=max(0.0, of_objects - joint),
        voi_merge=max(0.0, of_segments - joint),
        arand=1.0 - 2.0 * shared_pairs / pairs if pairs else 0.0,
        precision=shared_pairs / segment_pairs if segment_pairs else 1.0,
        recall=shared_pairs / object_pairs if object_pairs else 1.0,
        voxels=voxels,
        segments=segments.size + (int(alone) - 1 if apart else 0),
        objects=objects.size,
    )


def _entropy(counts: npt.NDArray[np.float64]) -> float:
    """The sum of n log2 n, the same bits whatever the order of the counts."""
    ordered = np.sort(counts)
    return float(ordered @ np.log2(ordered))


def _totals(ids: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Voxels of each id, by id."""
    present, group = np.unique(ids, return_inverse=True)
    return np.bincount(group, counts, present.size).astype(np.float64, copy=False)


def _without(segments: npt.NDArray[np.float64], alone: float) -> npt.NDArray[np.float64]:
    """Voxels of the segments but 0, whose voxels come first where there are any."""
    return segments[1:] if alone else segments
