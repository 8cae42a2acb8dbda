"""Which affinities should a network predict for given labels?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import VolumeError

Offset: TypeAlias = tuple[int, int, int]

NEAREST_OFFSETS: tuple[Offset, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
"""The neighbour before each voxel along z, y and x, in voxels; the channels that every decoder reads."""

LONG_RANGE_OFFSETS: tuple[Offset, ...] = tuple(
    offset
    for z_step, in_plane_step in zip((1, 2, 3, 4), (1, 3, 9, 27), strict=True)
    for offset in ((-z_step, 0, 0), (0, -in_plane_step, 0), (0, 0, -in_plane_step))
)
"""z 1, 2, 3, 4 and y, x 1, 3, 9, 27, in voxels; ordered by range, so that the first three channels are the nearest."""


def widen_borders(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Zero every voxel whose 3x3 in-plane window holds more than one positive id.

    Touching objects become separated by background two voxels wide within each section; nothing is widened along z.
    Windows are truncated at the border of the volume.

    Args:
        labels: (z, y, x) integers; ids <= 0 are background and stay as they are. Not modified.

    Returns:
        (z, y, x) of the same dtype, a new contiguous array.

    Raises:
        VolumeError: if labels are not a three-dimensional array of integers.
    """
    _require_labels(labels)
    widened = np.array(labels, order="C", copy=True)
    mixed = np.zeros(labels.shape, np.bool_)
    _mark_mixed_windows(widened, mixed)
    widened[mixed] = 0
    return widened


def affinities_from_labels(
    labels: npt.NDArray[Any], offsets: Sequence[Offset] = NEAREST_OFFSETS
) -> npt.NDArray[np.uint8]:
    """Derive 0/1 affinities: 1 iff a voxel and the voxel at its offset carry the same positive id.

    Where the voxel at the offset lies outside the volume (the first plane along an axis), the affinity is labels > 0.
    Flip and rotate labels before, never affinities after: the channels have a direction, which waterz reads too.

    Args:
        labels: (z, y, x) integers; ids <= 0 are background.
        offsets: one (z, y, x) offset per channel, in voxels.

    Returns:
        (channel, z, y, x) uint8 of zeros and ones, one channel per offset.

    Raises:
        VolumeError: if labels are not a three-dimensional array of integers.
    """
    _require_labels(labels)
    affinities = np.empty((len(offsets), *labels.shape), np.uint8)
    affinities[:] = labels > 0
    for channel, offset in zip(affinities, offsets, strict=True):
        here = tuple(
            slice(max(0, -step), max(0, min(size, size - step)))
            for step, size in zip(offset, labels.shape, strict=True)
        )
        there = tuple(
            slice(max(0, step), max(0, min(size, size + step))) for step, size in zip(offset, labels.shape, strict=True)
        )
        channel[here] &= labels[here] == labels[there]
    return affinities


def _require_labels(labels: npt.NDArray[Any]) -> None:
    if labels.ndim != 3 or labels.dtype.kind not in "iu":
        raise VolumeError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}",
            remedy="give integers of shape (z, y, x)",
        )


@numba.njit(cache=True, nogil=True)
def _mark_mixed_windows(labels: npt.NDArray[Any], mixed: npt.NDArray[np.bool_]) -> None:
    depth, height, width = labels.shape
    # A positive voxel lies in its own window: the window is mixed iff one neighbour is positive and differs.
    # The innermost loop runs along x without branches, so that it vectorises.
    for z in range(depth):
        for y in range(height):
            for neighbour_y in range(max(0, y - 1), min(height, y + 2)):
                for step in (-1, 0, 1):
                    first = max(0, -step)
                    here = labels[z, y, first : width - max(0, step)]
                    there = labels[z, neighbour_y, first + step :]
                    marks = mixed[z, y, first:]
                    for x in range(here.size):
                        marks[x] |= (here[x] > 0) & (there[x] > 0) & (here[x] != there[x])
