"""What the coarser levels of a multiscale image look like: which axes to halve, and how voxels are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.space import Lengths, Space, as_lengths

Array = npt.NDArray[Any]
Method = Literal["mean", "mode"]

LARGEST_EXTENT = 512
"""In-plane extent (voxels) at which a pyramid is small enough to be shown as a whole."""


@dataclass(frozen=True)
class LevelPlan:
    """One level of a pyramid.

    Args:
        shape: extent (z, y, x) in voxels of this level.
        step: how many voxels of the level before are merged into one, per axis; (1, 1, 1) for the finest level.
        voxel_size: nm (z, y, x).
        offset: nm (z, y, x) of the centre of the first voxel; merging two voxels moves it by half a voxel.
    """

    shape: Triple
    step: Triple
    voxel_size: Lengths
    offset: Lengths

    def source_of(self, box: Box, finer: Triple) -> Box:
        """The voxels of the level before (of this shape) that are merged into a box of this level."""
        start = as_triple([a * s for a, s in zip(box.start, self.step, strict=True)], "start")
        stop = as_triple([b * s for b, s in zip(box.stop, self.step, strict=True)], "stop")
        return Box(start, stop).intersect(Box.from_shape(finer))


def plan_levels(shape: Sequence[int], space: Space, *, largest: int = LARGEST_EXTENT) -> list[LevelPlan]:
    """Plans the levels of a volume (z, y, x), the finest first, until its sections are no larger than `largest`.

    An axis is halved once its voxels are less than twice as long as the shortest ones: sections of anisotropic
    volumes are halved in-plane until the voxels are about isotropic, then all axes are.
    """
    level = LevelPlan(as_triple(shape, "shape"), (1, 1, 1), space.voxel_size, space.offset)
    levels = [level]
    while max(level.shape[1:]) > largest:
        shortest = min(size for size, extent in zip(level.voxel_size, level.shape, strict=True) if extent > 1)
        step = as_triple(
            [
                2 if extent > 1 and size < 2 * shortest else 1
                for size, extent in zip(level.voxel_size, level.shape, strict=True)
            ],
            "step",
        )
        level = LevelPlan(
            as_triple([-(-extent // s) for extent, s in zip(level.shape, step, strict=True)], "shape"),
            step,
            as_lengths([size * s for size, s in zip(level.voxel_size, step, strict=True)], "voxel size"),
            as_lengths(
                [o + (s - 1) / 2 * size for o, s, size in zip(level.offset, step, level.voxel_size, strict=True)],
                "offset",
            ),
        )
        levels.append(level)
    return levels


def downsample(block: Array, step: Triple, method: Method) -> Array:
    """Merges `step` voxels of the last three axes into one.

    Args:
        block: array (..., z, y, x); where an extent is odd its last voxels are repeated.
        step: 1 or 2 per axis.
        method: "mean" for images (rounded where the dtype is an integer), "mode" for labels (the most frequent id, of
            equally frequent ones the first).

    Returns:
        An array of the same dtype, its extents divided by `step` and rounded up.
    """
    widths = [(0, 0)] * (block.ndim - 3) + [(0, -extent % s) for extent, s in zip(block.shape[-3:], step, strict=True)]
    if any(after for _, after in widths):
        block = np.pad(block, widths, mode="edge")
    z, y, x = step
    corners = [block[..., i::z, j::y, k::x] for i in range(z) for j in range(y) for k in range(x)]
    return _mode(corners) if method == "mode" else _mean(corners, block.dtype)


def _mean(corners: list[Array], dtype: np.dtype[Any]) -> Array:
    precise = np.float64 if dtype.itemsize > 2 else np.float32
    total = np.zeros(corners[0].shape, precise)
    for corner in corners:
        total += corner
    total /= len(corners)
    if dtype.kind in "ui":
        np.rint(total, out=total)
    return total.astype(dtype)


def _mode(corners: list[Array]) -> Array:
    best = corners[0].copy()
    most = np.zeros(best.shape, np.uint8)
    for candidate in corners:
        votes = np.zeros(best.shape, np.uint8)
        for corner in corners:
            votes += corner == candidate
        better = votes > most
        best[better] = candidate[better]
        np.maximum(most, votes, out=most)
    return best
