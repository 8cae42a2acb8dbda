"""How far is a segmentation from the ground truth?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fastremap
import numpy as np
import numpy.typing as npt
from scipy import sparse

from fgnet.postproc.protocols import PROTOCOLS, ProtocolName, scored_voxels
from fgnet.volumes.errors import VolumeError


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
        protocol: "standard" (ignores id 0), "snemi3d" (also takes segment 0 as singletons) or "cremi" (ignores only
            the largest uint64; id 0 is scored).
        ignore: ground-truth ids not to score, instead of those of the protocol.
        min_size: ground-truth ids with fewer voxels in the volume are ignored, in voxels.
        border_mask: bool of the same shape, True where a voxel is not to be scored (see `protocols.border_mask`).

    Returns:
        The scores.

    Raises:
        VolumeError: if shapes differ, ids are no integers, the protocol is unknown or no voxel is left to score.
    """
    if protocol not in PROTOCOLS:
        raise VolumeError(f"there is no protocol {protocol!r}", remedy=f"choose one of {', '.join(PROTOCOLS)}")
    _require_ids(segmentation, ground_truth)
    if border_mask is not None and border_mask.shape != ground_truth.shape:
        raise VolumeError(f"the border mask has shape {border_mask.shape}, the ground truth {ground_truth.shape}")
    rules = PROTOCOLS[protocol]
    scored = scored_voxels(ground_truth, rules.ignore if ignore is None else ignore, min_size)
    if border_mask is not None:
        scored &= ~border_mask
    segments, objects = segmentation[scored], ground_truth[scored]
    if segments.size == 0:
        raise VolumeError(
            "no voxel of the ground truth is left to score",
            remedy="check which ids are ignored, the minimum size and the border mask",
        )
    counts = _overlaps(objects, segments, zero_as_singletons=rules.zero_as_singletons)
    return _scores(counts)


def _require_ids(segmentation: npt.NDArray[Any], ground_truth: npt.NDArray[Any]) -> None:
    if segmentation.shape != ground_truth.shape:
        raise VolumeError(
            f"the segmentation has shape {segmentation.shape}, the ground truth {ground_truth.shape}",
            remedy="crop both to the same region",
        )
    for name, ids in (("segmentation", segmentation), ("ground truth", ground_truth)):
        if ids.dtype.kind not in "iub":
            raise VolumeError(f"the {name} holds {ids.dtype}, not integer ids")


def _overlaps(objects: npt.NDArray[Any], segments: npt.NDArray[Any], *, zero_as_singletons: bool) -> sparse.csr_array:
    """Count the voxels that each object (row) and each segment (column) share."""
    rows, n_objects = _consecutive(objects)
    columns, n_segments = _consecutive(segments)
    if zero_as_singletons:
        background = np.flatnonzero(segments == 0)
        columns[background] = n_segments + np.arange(background.size)
        n_segments += background.size
    ones = np.ones(rows.size, np.int64)
    return sparse.csr_array((ones, (rows, columns)), shape=(n_objects, n_segments))


def _consecutive(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], int]:
    compact, _ = fastremap.renumber(ids.astype(np.uint64, copy=False), preserve_zero=False)
    return compact.astype(np.int64), int(compact.max()) + 1


def _scores(counts: sparse.csr_array) -> Scores:
    shared = counts.data.astype(np.float64)
    objects = np.asarray(counts.sum(axis=1), np.float64).ravel()
    segments = np.asarray(counts.sum(axis=0), np.float64).ravel()
    objects, segments = objects[objects > 0], segments[segments > 0]
    voxels = int(objects.sum())

    # Entropies share the term log2(voxels), which cancels in both differences.
    joint, of_objects, of_segments = (float(n @ np.log2(n)) / voxels for n in (shared, objects, segments))
    # Ordered pairs of distinct voxels; a volume without such pairs contains no error of that kind.
    shared_pairs, object_pairs, segment_pairs = (float(n @ n) - voxels for n in (shared, objects, segments))
    pairs = object_pairs + segment_pairs
    return Scores(
        voi_split=max(0.0, of_objects - joint),
        voi_merge=max(0.0, of_segments - joint),
        arand=1.0 - 2.0 * shared_pairs / pairs if pairs else 0.0,
        precision=shared_pairs / segment_pairs if segment_pairs else 1.0,
        recall=shared_pairs / object_pairs if object_pairs else 1.0,
        voxels=voxels,
        segments=segments.size,
        objects=objects.size,
    )
