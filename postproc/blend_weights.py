"""How much does each voxel of a patch count where patches overlap?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.grid import PatchGrid

WeightKind: TypeAlias = Literal["gaussian", "bump", "constant"]

# Keeps the corners of a patch from vanishing in float32: where only they reach, they decide.
_FLOOR = 1e-4
_SIGMA = 0.2


@dataclass(frozen=True, eq=False)
class BlendWeights:
    """The weights of a patch: floor + z * y * x, kept as one factor per axis.

    Attributes:
        floor: added to every product, so that no weight vanishes.
        z: factor along z, float32.
        y: factor along y, float32.
        x: factor along x, float32.
    """

    floor: float
    z: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    x: npt.NDArray[np.float32]

    @property
    def shape(self) -> Triple:
        """Shape (z, y, x) of the patch in voxels."""
        return len(self.z), len(self.y), len(self.x)

    def dense(self) -> npt.NDArray[np.float32]:
        """The weight of every voxel: (z, y, x) float32."""
        product = self.z[:, None, None] * self.y[:, None] * self.x
        return product + np.float32(self.floor)


@dataclass(frozen=True, eq=False)
class WeightTotals:
    """What the weights of all patches of a grid come to at each voxel: floor * n_z * n_y * n_x + z * y * x.

    The sum over a grid of a product of factors per axis is the product of the sums per axis, so nothing has to be
    accumulated, and no array of the volume's size is needed.

    Attributes:
        floor: of the weights.
        counts: how many blocks of each axis (z, y, x) cover a place, float32, as long as the padded volume's axis.
        factors: what their factors come to there, likewise.
    """

    floor: float
    counts: tuple[npt.NDArray[np.float32], ...]
    factors: tuple[npt.NDArray[np.float32], ...]

    @classmethod
    def of(cls, weights: BlendWeights, grid: PatchGrid) -> WeightTotals:
        """The totals of a grid whose patches have these weights."""
        counts, factors = [], []
        for extent, starts, axis in zip(grid.padded, grid.starts, (weights.z, weights.y, weights.x), strict=True):
            count, factor = np.zeros(extent), np.zeros(extent)
            for start in starts:
                count[start : start + len(axis)] += 1
                factor[start : start + len(axis)] += axis
            counts.append(count.astype(np.float32))
            factors.append(factor.astype(np.float32))
        return cls(weights.floor, tuple(counts), tuple(factors))

    def dense(self, box: Box) -> npt.NDArray[np.float32]:
        """The total at every voxel of a box: (z, y, x) float32."""
        (nz, ny, nx), (z, y, x) = (
            [axis[piece] for axis, piece in zip(axes, box.slices, strict=True)] for axes in (self.counts, self.factors)
        )
        product = z[:, None, None] * y[:, None] * x
        return product + np.float32(self.floor) * (nz[:, None, None] * ny[:, None] * nx)


def make_weights(kind: WeightKind, patch: Sequence[int]) -> BlendWeights:
    """Weights of a patch, largest at its centre.

    gaussian: 1e-4 + exp(-r^2 / (2 * 0.2^2)), with r^2 the sum over the axes of u^2, u in linspace(-1, 1).
    bump: 1e-4 + exp(-sum over the axes of (u (1 - u))^-1.5), with u = (i + 1) / (n + 1) strictly inside (0, 1) and the
    exponential scaled to a maximum of 1; the form of the Seung lab, without the floor (Lee et al. 2017).
    constant: 1.

    Args:
        kind: "gaussian", "bump" or "constant".
        patch: shape (z, y, x) of the patch in voxels.

    Returns:
        The weights, positive everywhere.

    Raises:
        GeometryError: if there is no such kind, or the patch has no voxels.
    """
    shape = as_triple(patch, "patch")
    if min(shape) < 1:
        raise GeometryError(f"a patch of {shape} voxels has no weights")
    if kind not in _PROFILES:
        raise GeometryError(f"there are no {kind!r} weights", remedy=f"choose one of {', '.join(_PROFILES)}")
    z, y, x = (_PROFILES[kind](size).astype(np.float32) for size in shape)
    return BlendWeights(0.0 if kind == "constant" else _FLOOR, z, y, x)


def _gaussian(size: int) -> npt.NDArray[np.float64]:
    # An axis of one voxel has its centre there.
    u = np.linspace(-1.0, 1.0, size) if size > 1 else np.zeros(1)
    profile: npt.NDArray[np.float64] = np.exp(-(u**2) / (2 * _SIGMA**2))
    return profile


def _bump(size: int) -> npt.NDArray[np.float64]:
    u = np.arange(1, size + 1) / (size + 1)
    exponent = -((u * (1 - u)) ** -1.5)
    profile: npt.NDArray[np.float64] = np.exp(exponent - exponent.max())
    return profile


_PROFILES: dict[str, Callable[[int], npt.NDArray[np.float64]]] = {
    "gaussian": _gaussian,
    "bump": _bump,
    "constant": np.ones,
}
