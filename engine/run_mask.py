"""Where the tissue is: a mask volume of the gray's extent, at its resolution or a coarser one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fgnet.engine.run_plan import ColumnPlan, RunPlan
from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.reading import Volume


def _factor(extent: int, size: int) -> int:
    """By how much an axis was made coarser: of several factors that would do, a power of two, as pyramids have them."""
    least = -(-extent // size)
    power = 1 << (least - 1).bit_length()
    return power if -(-extent // power) == size else least


class RunMask:
    """A volume whose voxels are tissue where they are not 0.

    Blocks without tissue are not run, and affinities outside of it are 0; those inside are what they are without a
    mask.

    Args:
        volume: (z, y, x) of integers or booleans. An axis may be shorter than the gray's by a whole factor: then one of
            its voxels stands for that many.
        shape: of the gray.

    Raises:
        VolumeError: the extents do not fit, or the values are no integers.
    """

    def __init__(self, volume: Volume, shape: Triple) -> None:
        if volume.dtype.kind not in "bui":
            raise VolumeError(
                f"the mask's values are {volume.dtype}", where=volume.address, remedy="give integers or booleans"
            )
        self.volume, self._shape = volume, shape
        factors = [_factor(extent, size) for extent, size in zip(shape, volume.shape, strict=True)]
        if any(-(-extent // f) != size for extent, f, size in zip(shape, factors, volume.shape, strict=True)):
            raise VolumeError(
                f"the mask has shape {volume.shape}, the volume {shape}",
                where=volume.address,
                remedy="give a mask of the volume's shape, or of its shape divided by whole numbers and rounded up",
            )
        self.factors = as_triple(factors, "factors")

    def inside(self, box: Box) -> npt.NDArray[np.bool_]:
        """Whether the voxels of a box inside the volume are tissue: (z, y, x)."""
        coarse = Box(
            as_triple([a // f for a, f in zip(box.start, self.factors, strict=True)], "start"),
            as_triple([-(-b // f) for b, f in zip(box.stop, self.factors, strict=True)], "stop"),
        )
        tissue = self.volume.read(coarse) != 0
        for axis, factor in enumerate(self.factors):
            if factor > 1:
                tissue = np.repeat(tissue, factor, axis)
        offset = [a - c * f for a, c, f in zip(box.start, coarse.start, self.factors, strict=True)]
        inside: npt.NDArray[np.bool_] = tissue[Box.from_shape(box.shape).shift(offset).slices]
        return inside

    def column(self, column: ColumnPlan, patch: Triple) -> Callable[[int], bool]:
        """Tells of a column's blocks, by their first section, whether there is tissue in them."""
        first, stop = column.starts[0], column.starts[-1] + patch[0]
        box = Box((first, column.y, column.x), (stop, column.y + patch[1], column.x + patch[2]))
        inside = self.inside(box.intersect(Box.from_shape(self._shape)))
        tissue = np.logical_or.reduce(inside, axis=(1, 2))
        return lambda start: bool(tissue[start - first : start - first + patch[0]].any())


def blocks_left(mask: RunMask, plan: RunPlan) -> int:
    """How many of a plan's blocks hold tissue, those that two tiles share counted twice; reads the mask once.

    Raises:
        VolumeError: the mask cannot be read.
    """
    return sum(
        sum(map(mask.column(column, plan.grid.patch), column.starts))
        for tile in plan.tiles
        for column in plan.columns_of(tile)
    )
