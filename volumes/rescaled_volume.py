"""A volume as a network sees it: its gray, or where its tissue is, on a grid of another voxel size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.volumes.geometry import Box, as_triple
from fgnet.volumes.reading import Volume, check_gray, read_gray
from fgnet.volumes.rescaling import Rescaling
from fgnet.volumes.source import Slices, Source

# Voxels of the volume that are read for a piece of the network's grid, a section at least.
_PIECE = 1 << 25


def rescaled_gray(volume: Volume, rescaling: Rescaling, *, gray_range: tuple[float, float] | None = None) -> Volume:
    """A view of a volume's gray on the network's grid: uint8, resampled as it is read.

    Args:
        volume: gray; closing the view does not close it.
        rescaling: of the volume's shape.
        gray_range: values that become 0 and 255; without it only uint8 is accepted.

    Raises:
        VolumeError: gray that is not 8-bit, and no range.
    """
    check_gray(volume, rescale=gray_range)

    def read(box: Box) -> npt.NDArray[np.uint8]:
        return rescaling.gray(box, lambda inner: read_gray(volume, inner, rescale=gray_range))

    return _view(volume, rescaling, np.dtype(np.uint8), read)


def rescaled_tissue(volume: Volume, rescaling: Rescaling, inside: Callable[[Box], npt.NDArray[np.bool_]]) -> Volume:
    """A view of where the tissue is on the network's grid: bool, True wherever affinities in tissue may need it.

    Args:
        volume: the mask, whose address the view has.
        rescaling: of the gray's shape.
        inside: tells of the voxels of a box of the gray whether they are tissue.
    """
    return _view(volume, rescaling, np.dtype(np.bool_), lambda box: rescaling.tissue(box, inside))


def _view(
    volume: Volume, rescaling: Rescaling, dtype: np.dtype[Any], read: Callable[[Box], npt.NDArray[Any]]
) -> Volume:
    shape, factors = rescaling.network_shape, rescaling.factors

    def read_slices(slices: Slices) -> npt.NDArray[Any]:
        box = Box(as_triple([s.start for s in slices], "start"), as_triple([s.stop for s in slices], "stop"))
        depth = max(1, int(_PIECE / (math.prod(box.shape[1:]) * math.prod(factors))))
        if box.shape[0] <= depth:
            return read(box)
        values = np.empty(box.shape, dtype)
        for first in range(box.start[0], box.stop[0], depth):
            piece = Box((first, *box.start[1:]), (min(first + depth, box.stop[0]), *box.stop[1:]))
            values[first - box.start[0] : piece.stop[0] - box.start[0]] = read(piece)
        return values

    held = volume.chunks and volume.chunks[-3:]
    chunks = held and tuple(max(1, round(n / f)) for n, f in zip(held, factors, strict=True))
    space = rescaling.network_space(volume.space)
    source = Source(shape, dtype, read_slices, chunks, space)
    return Volume(volume.address, shape, dtype, source.chunks or None, space, (), source)
