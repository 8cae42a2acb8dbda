"""Which voxels of a segmentation are compared with which of the ground truth, read a part at a time?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fgnet.postproc.error_places import Place, find_places
from fgnet.postproc.metrics import Scores, scores_of
from fgnet.postproc.object_report import Pieces
from fgnet.postproc.overlaps import Ids, Overlaps, Slab, count_overlaps, scored
from fgnet.postproc.protocols import Protocol, border_mask
from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import Volume, check_labels, read_labels

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

    def __post_init__(self) -> None:
        check_labels(self.segments)
        check_labels(self.truth)
        if self.border and not self.truth.space.known:
            raise VolumeError(
                "the voxel size is not known, so a border in nm means nothing",
                where=self.truth.address,
                remedy="score without it (--border 0), or write the resolution into the file",
            )

    @cached_property
    def overlaps(self) -> Overlaps:
        """The pairs of ids that are scored.

        Raises:
            VolumeError: no voxel is left to score, or what cannot be read.
        """
        return scored(count_overlaps(self._slabs()), self.rules.ignore, self.min_size)

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
        (first, *rest), (last, *ends) = self.region.start, self.region.stop
        shift = [there - here for here, there in zip(self.region.start, self.inside.start, strict=True)]
        step = self._step
        for begin in range(first - first % step, last, step):
            box = Box((max(begin, first), rest[0], rest[1]), (min(begin + step, last), ends[0], ends[1]))
            yield box.start, read_labels(self.truth, box), read_labels(self.segments, box.shift(shift))

    def _slabs(self) -> Iterator[Slab]:
        for _, truth, segments in self._parts():
            masked = border_mask(truth, self.border, self.truth.space.voxel_size) if self.border else None
            yield Slab(truth, segments, masked)

    @property
    def _step(self) -> int:
        """Sections of a part: whole chunks of the ground truth, so that few are decoded twice."""
        section = math.prod(self.region.shape[1:])
        depth = 1 if self.truth.chunks is None else self.truth.chunks[-3]
        return max(1, min(depth * max(1, _SLAB // (section * depth)), _LARGEST_SLAB // section))
