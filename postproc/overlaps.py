"""How many voxels does each true object share with each segment?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import fastremap
import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import VolumeError

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

# Pairs of ids that fit a table of this many entries are counted in it, which is faster than sorting them.
_TABLE = 1 << 22


@dataclass(frozen=True, eq=False)
class Slab:
    """A part of what is compared.

    Attributes:
        truth: ground-truth ids, integers of any shape.
        segments: ids of the segmentation, of the same shape.
        masked: bool of the same shape, True where a voxel is not scored whatever its ids; None for nowhere.
    """

    truth: npt.NDArray[Any]
    segments: npt.NDArray[Any]
    masked: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of a true object and a segment that share voxels, each pair once, by object and then by segment.

    Attributes:
        objects: uint64 (pairs), ground-truth id.
        segments: uint64 (pairs), id in the segmentation.
        counts: int64 (pairs), voxels that they share outside the mask.
        masked: int64 (pairs), voxels that they share inside it.
    """

    objects: Ids
    segments: Ids
    counts: Counts
    masked: Counts

    def where(self, chosen: npt.NDArray[np.bool_]) -> Overlaps:
        """The pairs that a mask (pairs) chooses."""
        return Overlaps(self.objects[chosen], self.segments[chosen], self.counts[chosen], self.masked[chosen])


def count_overlaps(slabs: Iterable[Slab]) -> Overlaps:
    """Count the voxels of every pair of ids, with memory for one slab and the pairs.

    Args:
        slabs: the parts of a volume, in any order; each voxel lies in one.

    Raises:
        VolumeError: shapes differ, ids are no integers, or a mask is not bool.
    """
    parts = [_count(slab) for slab in slabs]
    columns = [np.concatenate([part[i] for part in parts]) if parts else np.empty(0, np.int64) for i in range(4)]
    objects, segments = columns[0].astype(np.uint64, copy=False), columns[1].astype(np.uint64, copy=False)
    order = np.lexsort((segments, objects))
    objects, segments = objects[order], segments[order]
    new = np.ones(order.size, np.bool_)
    new[1:] = (objects[1:] != objects[:-1]) | (segments[1:] != segments[:-1])
    starts = np.flatnonzero(new)
    counts, masked = (
        np.add.reduceat(column[order], starts) if starts.size else np.empty(0, np.int64) for column in columns[2:]
    )
    return Overlaps(objects[starts], segments[starts], counts, masked)


def scored(overlaps: Overlaps, ignore: Sequence[int], min_size: int) -> Overlaps:
    """The pairs whose voxels are scored.

    Args:
        overlaps: of all voxels.
        ignore: true ids that are not scored; -1 stands for the largest uint64 too.
        min_size: true ids with fewer voxels than this, masked ones included, are not scored.

    Raises:
        VolumeError: no voxel is left to score.
    """
    # Signed -1 and uint64(-1) are the same bits once both are uint64.
    ignored = np.array([label % 2**64 for label in ignore], np.uint64)
    chosen = (overlaps.counts > 0) & ~np.isin(overlaps.objects, ignored)
    if min_size > 1:
        ids, group = np.unique(overlaps.objects, return_inverse=True)
        sizes = np.zeros(ids.size, np.int64)
        np.add.at(sizes, group, overlaps.counts + overlaps.masked)
        chosen &= sizes[group] >= min_size
    if not chosen.any():
        raise VolumeError(
            "no voxel of the ground truth is left to score",
            remedy="check which ids are ignored, the minimum size and the border mask",
        )
    return overlaps.where(chosen)


def _count(slab: Slab) -> tuple[Ids, Ids, Counts, Counts]:
    """Objects, segments, voxels outside the mask and inside it, of the pairs of a slab."""
    _require_ids(slab.segments, slab.truth)
    if slab.masked is not None and slab.masked.shape != slab.truth.shape:
        raise VolumeError(f"the border mask has shape {slab.masked.shape}, the ground truth {slab.truth.shape}")
    if slab.masked is not None and slab.masked.dtype != np.bool_:
        raise VolumeError(
            f"the border mask holds {slab.masked.dtype}", remedy="give bool, True where a voxel is not to be scored"
        )
    if not slab.truth.size:
        return np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    rows, objects = _consecutive(slab.truth)
    columns, segments = _consecutive(slab.segments)
    # A key says object, segment and whether the voxel is masked.
    keys = rows.astype(np.int64)
    keys *= segments.size
    keys += columns
    keys *= 2
    if slab.masked is not None:
        keys += slab.masked.ravel()
    entries = 2 * objects.size * segments.size
    if entries <= max(_TABLE, keys.size):
        table = np.bincount(keys, minlength=entries)
        found = np.flatnonzero(table)
        counts = table[found]
    else:
        found, counts = fastremap.unique(keys, return_counts=True)
    pairs, inside = found // 2, found % 2 == 1
    counts = counts.astype(np.int64)
    return (
        objects[pairs // segments.size],
        segments[pairs % segments.size],
        np.where(inside, 0, counts),
        np.where(inside, counts, 0),
    )


def _consecutive(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Ids]:
    """The ids, flat, as 0, 1, 2, ..., and the id that each number stands for."""
    compact, names = fastremap.renumber(
        np.ascontiguousarray(ids).reshape(-1).astype(np.uint64, copy=False), preserve_zero=False
    )
    lowest = min(names.values())
    table = np.zeros(len(names), np.uint64)
    table[np.fromiter(names.values(), np.int64, len(names)) - lowest] = np.fromiter(names, np.uint64, len(names))
    compact -= compact.dtype.type(lowest)
    return compact, table


def _require_ids(segmentation: npt.NDArray[Any], ground_truth: npt.NDArray[Any]) -> None:
    if segmentation.shape != ground_truth.shape:
        raise VolumeError(
            f"the segmentation has shape {segmentation.shape}, the ground truth {ground_truth.shape}",
            remedy="crop both to the same region",
        )
    for name, ids in (("segmentation", segmentation), ("ground truth", ground_truth)):
        if ids.dtype.kind not in "iub":
            raise VolumeError(f"the {name} holds {ids.dtype}, not integer ids")
