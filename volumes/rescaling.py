"""How do voxels of one size become voxels of another, block by block: gray on the way in, affinities on the way out?

Both grids begin at the same corner, and each axis is treated on its own. What a voxel becomes depends on its place in
the volume and on the voxels around it alone, so blocks of any shape give the bytes that the whole gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.space import Lengths, Space, as_lengths

# Places are rounded to so many digits of a voxel, so that 3 x 1.1 is not a little more than 3.3.
_DIGITS = 6
_LARGEST_FACTOR = 16.0


@dataclass(frozen=True)
class Rescaling:
    """A volume, and the grid on which a network sees it.

    Attributes:
        shape: (z, y, x) of the volume.
        factors: voxels of the volume along each axis for one of the network's grid.

    Raises:
        GeometryError: a factor beyond 1/16 .. 16.
    """

    shape: Triple
    factors: Lengths

    def __post_init__(self) -> None:
        for axis, factor in zip("zyx", self.factors, strict=True):
            if not 1 / _LARGEST_FACTOR <= factor <= _LARGEST_FACTOR:
                raise GeometryError(
                    f"one voxel would become {factor:g}",
                    where=f"axis {axis}",
                    remedy=f"choose a voxel size at most {_LARGEST_FACTOR:g} times larger or smaller",
                )

    @property
    def identity(self) -> bool:
        """Whether both grids are the same."""
        return self.factors == (1.0, 1.0, 1.0)

    @property
    def network_shape(self) -> Triple:
        """(z, y, x) of the network's grid; its last voxels may reach beyond the volume."""
        z, y, x = (max(1, math.ceil(round(n / f, _DIGITS))) for n, f in zip(self.shape, self.factors, strict=True))
        return z, y, x

    def network_space(self, space: Space) -> Space:
        """Voxel size and offset of the network's grid; an offset is that of the first voxel's middle."""
        size = [length * f for length, f in zip(space.voxel_size, self.factors, strict=True)]
        middle = [o + (new - old) / 2 for o, new, old in zip(space.offset, size, space.voxel_size, strict=True)]
        return Space(as_lengths(size, "voxel size"), as_lengths(middle, "offset"), space.known)

    def gray(self, box: Box, read: Callable[[Box], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Gray of a box of the network's grid: the mean over what a voxel covers, or linear between voxels.

        Args:
            box: inside the network's grid.
            read: gives (z, y, x) uint8 of any box of the volume.
        """
        rows = [
            _resampled(first, stop, factor, extent)
            for first, stop, factor, extent in zip(box.start, box.stop, self.factors, self.shape, strict=True)
        ]
        return _rounded(_apply(rows, read(_covering(rows))))

    def affinities(self, box: Box, read: Callable[[Box], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Affinities of a box of the volume, from those of the network's grid.

        An affinity belongs to the face between a voxel and the one before it. Along its own axis, where the network's
        voxels are larger, it is linear between their faces; where they are smaller, it is the lowest on the way from
        one middle to the next, for a boundary anywhere on the way parts the voxels. Across, it is taken as gray is.

        Args:
            box: inside the volume.
            read: gives (3, z, y, x) uint8 of any box of the network's grid.
        """
        back, extents = [1.0 / f for f in self.factors], self.network_shape
        bounds = list(zip(box.start, box.stop, back, extents, strict=True))
        across, along = [_resampled(*bound) for bound in bounds], [_faces(*bound) for bound in bounds]
        held = _covering(across, along)
        values = read(held)
        made = np.empty((3, *box.shape), np.uint8)
        for channel in range(3):
            rows = [along[axis] if axis == channel else across[axis] for axis in range(3)]
            inner = _covering(rows).shift([-first for first in held.start])
            made[channel] = _rounded(_apply(rows, values[(channel, *inner.slices)]))
        return made

    def network_box(self, box: Box) -> Box:
        """The voxels of the network's grid on which the affinities of a box of the volume depend."""
        bounds = list(zip(box.start, box.stop, [1.0 / f for f in self.factors], self.network_shape, strict=True))
        return _covering([_resampled(*bound) for bound in bounds], [_faces(*bound) for bound in bounds])

    def tissue(self, box: Box, read: Callable[[Box], npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
        """Whether voxels of a box of the network's grid are near tissue, so that affinities in it may need them.

        Args:
            box: inside the network's grid.
            read: tells of the voxels (z, y, x) of any box of the volume whether they are tissue.
        """
        spans = []
        for first, stop, factor, extent in zip(box.start, box.stop, self.factors, self.shape, strict=True):
            index = np.arange(first, stop)
            edges = np.floor((index - 1) * factor) - 1, np.ceil((index + 2) * factor) + 1
            spans.append([np.clip(edge, 0, extent).astype(np.int64) for edge in edges])
        begin = as_triple([int(begins[0]) for begins, _ in spans], "start")
        found: npt.NDArray[Any] = read(Box(begin, as_triple([int(ends[-1]) for _, ends in spans], "stop")))
        for axis, (begins, ends) in enumerate(spans):
            counts = np.insert(np.cumsum(found, axis, dtype=np.int64), 0, 0, axis)
            found = np.take(counts, ends - begin[axis], axis) > np.take(counts, begins - begin[axis], axis)
        return found


def rescaling_to(shape: Triple, voxel_size: Lengths, wanted: Lengths) -> Rescaling:
    """The rescaling that brings a volume to a voxel size.

    Args:
        shape: of the volume.
        voxel_size: of the volume, nm.
        wanted: of the network's grid, nm.

    Raises:
        GeometryError: a size that is not above 0, or too far from the volume's.
    """
    if min(wanted) <= 0:
        raise GeometryError(f"the voxel size {wanted} is not above 0", where="--rescale")
    factors = [to / of for of, to in zip(voxel_size, wanted, strict=True)]
    # Sizes in files are often rounded: a difference of one in ten thousand is none.
    return Rescaling(shape, as_lengths([1.0 if abs(f - 1) < 1e-4 else f for f in factors], "factors"))


@dataclass(frozen=True, eq=False)
class _Rows:
    """How the voxels of a range come from those of another grid.

    Attributes:
        begin: first voxel that is read.
        end: one past the last.
        weights: (range, end - begin) sparse; None where values stay as they are.
        starts: where each voxel takes the lowest of what is read from there to the next one's, instead of a mean.
    """

    begin: int
    end: int
    weights: Any = None
    starts: npt.NDArray[np.int64] | None = None


def _resampled(first: int, stop: int, factor: float, extent: int) -> _Rows:
    """Voxels first .. stop - 1, of which each spans `factor` voxels of an axis with `extent` of them."""
    index = np.arange(first, stop, dtype=np.float64)
    if factor == 1.0:
        return _Rows(first, stop)
    if factor < 1.0:
        return _linear(np.round((index + 0.5) * factor - 0.5, _DIGITS), extent)
    low = np.round(index * factor, _DIGITS)
    high = np.minimum(np.round((index + 1) * factor, _DIGITS), extent)
    lowest = np.floor(low)
    columns = lowest[:, None] + np.arange(int((np.ceil(high) - lowest).max()))
    overlap = np.clip(np.minimum(columns + 1, high[:, None]) - np.maximum(columns, low[:, None]), 0, None)
    return _weighted(columns, overlap / (high - low)[:, None])


def _faces(first: int, stop: int, factor: float, extent: int) -> _Rows:
    """Faces before voxels first .. stop - 1, from the faces before those of an axis with `extent` voxels."""
    index = np.arange(first, stop, dtype=np.float64)
    if factor == 1.0:
        return _Rows(first, stop)
    if factor < 1.0:
        return _linear(np.round(index * factor, _DIGITS), extent)
    # The way from the middle of the voxel before to that of this one; the last one ends where the next would begin.
    middles = np.round((np.arange(first, stop + 1) - 0.5) * factor, _DIGITS)
    bounds = np.clip(np.ceil(middles), 0, extent).astype(np.int64)
    return _Rows(int(bounds[0]), int(bounds[-1]), starts=bounds[:-1] - bounds[0])


def _linear(places: npt.NDArray[np.float64], extent: int) -> _Rows:
    """Values at places between voxels; beyond the outermost they stay what they are there."""
    inside = np.clip(places, 0, extent - 1)
    lower = np.minimum(np.floor(inside), max(extent - 2, 0))
    share = inside - lower
    return _weighted(lower[:, None] + np.arange(2.0), np.stack([1 - share, share], axis=1))


def _weighted(columns: npt.NDArray[Any], weights: npt.NDArray[np.float64]) -> _Rows:
    used = weights > 0
    taken = columns[used].astype(np.int64)
    begin, end = int(taken.min()), int(taken.max()) + 1
    ends = np.concatenate([[0], np.cumsum(used.sum(1))])
    table = sparse.csr_array((weights[used].astype(np.float32), taken - begin, ends), shape=(len(columns), end - begin))
    return _Rows(begin, end, weights=table)


def _covering(*triples: list[_Rows]) -> Box:
    """The box of all that the rows of the three axes read."""
    axes = list(zip(*triples, strict=True))
    begins = [min(row.begin for row in rows) for rows in axes]
    return Box(as_triple(begins, "start"), as_triple([max(row.end for row in rows) for rows in axes], "stop"))


def _apply(rows: list[_Rows], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values (z, y, x) on the other grid: what takes the lowest comes first, then axis by axis."""
    for axis, row in enumerate(rows):
        if row.starts is not None:
            values = np.minimum.reduceat(values, row.starts, axis)
    for axis, row in enumerate(rows):
        if row.weights is not None:
            moved = np.moveaxis(values, axis, 0)
            made = row.weights @ moved.reshape(len(moved), -1).astype(np.float32, copy=False)
            values = np.moveaxis(made.reshape(-1, *moved.shape[1:]), 0, axis)
    return values


def _rounded(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The nearest of 0 .. 255, halves up."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    return np.ascontiguousarray(np.floor(np.clip(values, 0, 255) + np.float32(0.5)), np.uint8)
