"""How far is a point from the neurites around it? Distances to cones, and a hash of cells that finds the near ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

CELL_NM = 192.0
STEEPEST = 1.6
"""The most that a distance changes per nm; more than 1 because some cones are flattened."""
_MARGIN_CELLS = 2

Array = NDArray[np.float32]


def as_cones(segments: Array, flatness: Array) -> Array:
    """Cones, (n, 12) float32: both ends, both radii, the flattening vector, the steepest slope of the distance.

    Args:
        segments: (n, 8) as in `Neurites`.
        flatness: (n, 3), direction in which a cone is flattened; its length f stretches distances by sqrt(1 + f^2).
    """
    slope = np.sqrt(1.0 + (flatness**2).sum(axis=1, keepdims=True))
    return np.ascontiguousarray(np.concatenate([segments, flatness, slope], axis=1), dtype=np.float32)


@njit(cache=True)
def to_cone(cone: Any, z: float, y: float, x: float) -> tuple[float, float, float, float]:
    """Signed distance (nm) to a cone, and its gradient (z, y, x)."""
    az, ay, ax = cone[0], cone[1], cone[2]
    bz, by, bx = cone[3] - az, cone[4] - ay, cone[5] - ax
    pz, py, px = z - az, y - ay, x - ax
    square = bz * bz + by * by + bx * bx
    along = (pz * bz + py * by + px * bx) / square if square > 0 else 0.0
    along = min(max(along, 0.0), 1.0)
    pz, py, px = pz - along * bz, py - along * by, px - along * bx
    flat = pz * cone[8] + py * cone[9] + px * cone[10]
    distance = math.sqrt(pz * pz + py * py + px * px + flat * flat) + 1e-6
    gz, gy, gx = pz + flat * cone[8], py + flat * cone[9], px + flat * cone[10]
    return distance - cone[6] - along * (cone[7] - cone[6]), gz / distance, gy / distance, gx / distance


@njit(cache=True)
def _fill_cells(cones: Any, reach: float, dims: Any, starts: Any, items: Any) -> None:
    """Which cones come near which cell; called once to count (`items` empty) and once to fill."""
    for n in range(len(cones)):
        cone = cones[n]
        extent = max(cone[6], cone[7]) + reach
        low, high = np.zeros(3, np.int64), np.zeros(3, np.int64)
        for axis in range(3):
            first, last = min(cone[axis], cone[axis + 3]) - extent, max(cone[axis], cone[axis + 3]) + extent
            low[axis] = max(0, math.floor(first / CELL_NM) + _MARGIN_CELLS)
            high[axis] = min(dims[axis] - 1, math.floor(last / CELL_NM) + _MARGIN_CELLS)
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                for k in range(low[2], high[2] + 1):
                    z, y, x = (i - 1.5) * CELL_NM, (j - 1.5) * CELL_NM, (k - 1.5) * CELL_NM
                    if to_cone(cone, z, y, x)[0] <= reach + 0.87 * CELL_NM * cone[11]:
                        cell = (i * dims[1] + j) * dims[2] + k
                        if len(items) > 0:
                            items[starts[cell]] = n
                        starts[cell] += 1


def hash_cones(cones: Array, size: tuple[float, float, float], reach: float) -> tuple[Any, Any, Any]:
    """Which cones come within `reach` nm of each cell of a grid over the volume and a margin.

    Returns:
        The grid's shape (3,), where each cell's list begins (cells + 1,), and the lists of cone indices.
    """
    dims = np.array([math.ceil(length / CELL_NM) + 2 * _MARGIN_CELLS for length in size], dtype=np.int64)
    counts = np.zeros(int(dims.prod()), dtype=np.int64)
    _fill_cells(cones, reach, dims, counts, np.empty(0, dtype=np.int32))
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    items = np.zeros(max(1, int(starts[-1])), dtype=np.int32)
    _fill_cells(cones, reach, dims, starts[:-1].copy(), items)
    return dims, starts, items


@njit(cache=True)
def near_block(
    cones: Any, cells: Any, centre: tuple[float, float, float], slack: float, limit: float, found: Any, lower: Any
) -> Any:
    """The cones that matter within a block, nearest first; returns how many.

    Args:
        cones: (n, 12).
        cells: what `hash_cones` gave.
        centre: (z, y, x) nm.
        slack: keep what is at most this much farther than the nearest.
        limit: and at most this far.
        found: filled with cone indices.
        lower: filled with their distances to the centre.
    """
    dims, starts, items = cells
    i = min(max(int(centre[0] / CELL_NM + _MARGIN_CELLS), 0), dims[0] - 1)
    j = min(max(int(centre[1] / CELL_NM + _MARGIN_CELLS), 0), dims[1] - 1)
    k = min(max(int(centre[2] / CELL_NM + _MARGIN_CELLS), 0), dims[2] - 1)
    cell = (i * dims[1] + j) * dims[2] + k
    first, last = starts[cell], starts[cell + 1]
    distances = np.empty(last - first, np.float32)
    nearest = limit
    for n in range(last - first):
        distances[n] = to_cone(cones[items[first + n]], centre[0], centre[1], centre[2])[0]
        nearest = min(nearest, distances[n])
    bound = min(nearest + slack, limit)
    near = np.flatnonzero(distances <= bound)
    kept = 0
    for n in near[np.argsort(distances[near])]:
        if kept == len(found):
            break
        found[kept], lower[kept] = items[first + n], distances[n]
        kept += 1
    return kept
