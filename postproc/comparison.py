"""Which voxels of a segmentation are compared with which of the ground truth, read a part at a time?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fgnet.postproc.error_places import Place, find_places
from fgnet.postproc.metrics import Scores, scores_of
from fgnet.postproc.object_report import Pieces
from fgnet.postproc.overlaps import Ids, Overlaps, Slab, count_overlaps, scored
from fgnet.postproc.protocols import Protocol, border_mask
from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import UNLABELLED, Volume, check_labels, read_labels

Known: TypeAlias = Callable[[Box], npt.NDArray[np.bool_]]
"""Tells of a box of the ground truth (z, y, x) which voxels somebody labelled."""

# Voxels that are read at a time, unless the chunks of the files are larger.
_SLAB = 1 << 24
_LARGEST_SLAB = 1 << 26


@dataclass(frozen=True, eq=False)
class Comparison:
    """A segmentation and a ground truth, read along z with memory for a part of them.

    Args:
        segments: (z, y, x) ids.
        truth: (z, y, x) ids.
        region: what is scored, in voxels of the ground truth.
        inside: the same in voxels of the segmentation.
        rules: of the scoring.
        min_size: true ids with fewer voxels in the region are not scored.
        border: nm from a true boundary, in its section, within which voxels are not scored.
        known: which voxels somebody labelled; without it, all but those that the ground truth marks.

    Raises:
        VolumeError: a volume that holds no ids, or a border in a volume of unknown voxel size.
    """

    segments: Volume
    truth: Volume
    region: Box
    inside: Box
    rules: Protocol
    min_size: int = 0
    border: float = 0.0
    known: Known | None = None

    def __post_init__(self) -> None:
        check_labels(self.segments)
        check_labels(self.truth)
        if self.border:
            require_voxel_size(self.truth)

    @cached_property
    def overlaps(self) -> Overlaps:
        """The pairs of ids that are scored.

        Raises:
            VolumeError: no voxel is left to score, or what cannot be read.
        """
        return scored(self._counted, self.rules.ignore, self.min_size)

    @property
    def unlabelled(self) -> int:
        """Voxels of the region that nobody labelled."""
        nobody = self._counted.objects == np.uint64(UNLABELLED)
        return int((self._counted.counts + self._counted.masked)[nobody].sum())

    @cached_property
    def _counted(self) -> Overlaps:
        """All pairs of ids, those that are not scored too."""
        return count_overlaps(self._slabs())

    @property
    def scores(self) -> Scores:
        """The scores of the region; errors as for `overlaps`."""
        return scores_of(self.overlaps, self.rules)

    def split_places(self, splits: list[Pieces]) -> list[Place]:
        """Where the segments of objects that are cut apart touch, in voxels of the ground truth."""
        return find_places(splits, self._parts, self.truth.space.voxel_size)

    def merge_places(self, merges: list[Pieces]) -> list[Place]:
        """Where the objects touch that a segment merges, in voxels of the ground truth."""
        return find_places(
            merges, lambda: ((start, parts, wholes) for start, wholes, parts in self._parts()),
            self.truth.space.voxel_size,
        )  # fmt: skip

    def _parts(self) -> Iterator[tuple[Triple, Ids, Ids]]:
        """First voxel in the ground truth, true ids and segments of one part after the other."""
        for box in self._boxes():
            yield box.start, _true_ids(self.truth, box, self.known), read_labels(self.segments, self._there(box))

    def _there(self, box: Box) -> Box:
        """A box of the ground truth in voxels of the segmentation."""
        return box.shift([there - here for here, there in zip(self.region.start, self.inside.start, strict=True)])

    def _boxes(self) -> Iterator[Box]:
        """One part after the other, of whole sections of the region."""
        (first, *rest), (last, *ends) = self.region.start, self.region.stop
        step = self._step
        for begin in range(first - first % step, last, step):
            yield Box((max(begin, first), rest[0], rest[1]), (min(begin + step, last), ends[0], ends[1]))

    def _strips(self, sections: Box) -> Iterator[Box]:
        """What is read of sections at a time: all, or strips of a section that is too large for that."""
        if sections.size <= _LARGEST_SLAB:
            yield sections
            return
        (first, top, left), (last, bottom, right) = sections.start, sections.stop
        chunk = 1 if self.truth.chunks is None else self.truth.chunks[-2]
        height = max(1, _LARGEST_SLAB // (sections.shape[0] * sections.shape[2]))
        height -= height % chunk if height > chunk else 0
        for begin in range(top - top % height, bottom, height):
            yield Box((first, max(begin, top), left), (last, min(begin + height, bottom), right))

    def _slabs(self) -> Iterator[Slab]:
        for sections in self._boxes():
            for box in self._strips(sections):
                truth, masked = read_truth(self.truth, box, self.border, self.known)
                yield Slab(truth, read_labels(self.segments, self._there(box)), masked)

    @property
    def _step(self) -> int:
        """Sections of a part: whole chunks of the ground truth, so that few are decoded twice."""
        section = math.prod(self.region.shape[1:])
        depth = 1 if self.truth.chunks is None else self.truth.chunks[-3]
        return max(1, min(depth * max(1, _SLAB // (section * depth)), _LARGEST_SLAB // section))


def read_truth(
    truth: Volume, box: Box, border: float, known: Known | None = None
) -> tuple[Ids, npt.NDArray[np.bool_] | None]:
    """True ids, and which voxels lie near a boundary in their section, be it in the box or beside it.

    Args:
        truth: (z, y, x) ids.
        box: in its voxels.
        border: nm from a boundary, see `protocols.border_mask`; 0 for no mask.
        known: which voxels somebody labelled.

    Returns:
        (z, y, x) uint64, `UNLABELLED` where nobody labelled, and bool; None in place of the latter without a border.

    Raises:
        VolumeError: the voxel size is not known, or what cannot be read.
    """
    if not border:
        return _true_ids(truth, box, known), None
    require_voxel_size(truth)
    # One voxel more: it takes both sides to see a boundary.
    sizes = zip(truth.space.voxel_size[1:], truth.shape[1:], strict=True)
    y, x = (math.ceil(min(border / size, extent)) + 1 for size, extent in sizes)
    wide = box.grow((0, y, x)).intersect(truth.box)
    ids, here = _true_ids(truth, wide, known), box.shift([-start for start in wide.start]).slices
    return np.ascontiguousarray(ids[here]), border_mask(ids, border, truth.space.voxel_size)[here]


def _true_ids(truth: Volume, box: Box, known: Known | None) -> Ids:
    """Labels of a box, `UNLABELLED` where nobody labelled."""
    ids = read_labels(truth, box, sparse=True)
    if known is not None:
        ids[~known(box)] = UNLABELLED
    return ids


def require_voxel_size(truth: Volume) -> None:
    """Refuse a border in a volume of unknown voxel size.

    Raises:
        VolumeError: it is not known.
    """
    if not truth.space.known:
        raise VolumeError(
            "the voxel size is not known, so a border in nm means nothing",
            where=truth.address,
            remedy="score without it (--border 0), or write the resolution into the file",
        )
