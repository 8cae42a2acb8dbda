"""Which neurite owns each voxel of a slab, and how gray is it before the microscope adds its share?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

from fgnet.volumes.cones import STEEPEST, near_block, to_cone
from fgnet.volumes.ultrastructure import CLIP_NM, TILE_NM

BLOCK_NM = 50.0
"""Voxels within about this distance share their list of near cones."""
REACH_NM = 260.0
"""How far a cone can be from a block that it matters to."""
_MEMBRANE_GRAY = 60.0
_MITOCHONDRIAL_MEMBRANE_GRAY = 76.0
_DENSITY_GRAY = 50.0
_MOST = 512


@njit(cache=True)
def _read(tile: Any, z: float, y: float, x: float) -> Any:
    """A periodic tile with an edge of a power of two, trilinear, at coordinates in its cells."""
    mask = tile.shape[0] - 1
    fz, fy, fx = math.floor(z), math.floor(y), math.floor(x)
    i, j, k = int(fz) & mask, int(fy) & mask, int(fx) & mask
    u, v, w = z - fz, y - fy, x - fx
    i1, j1, k1 = (i + 1) & mask, (j + 1) & mask, (k + 1) & mask
    near = (tile[i, j, k] * (1 - w) + tile[i, j, k1] * w) * (1 - v) + (
        tile[i, j1, k] * (1 - w) + tile[i, j1, k1] * w
    ) * v
    far = (tile[i1, j, k] * (1 - w) + tile[i1, j, k1] * w) * (1 - v) + (
        tile[i1, j1, k] * (1 - w) + tile[i1, j1, k1] * w
    ) * v
    return near * (1 - u) + far * u


@njit(cache=True)
def _hash(a: int, b: int) -> Any:
    """A number in [0, 1) that two neurites share."""
    word = np.uint64(a * 2654435761 + b * 40503 + 12345)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((word ^ (word >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True)
def _bent(warp: Any, z: float, y: float, x: float) -> tuple[float, float, float]:
    """Where a point of the image lies among the straight cones: two octaves of smooth displacement, nm."""
    a, b, c = z / 75.0, y / 75.0, x / 75.0
    d, e, f = z / 24.0 + 11.0, y / 24.0 + 5.0, x / 24.0 + 29.0
    return (
        z + 55.0 * _read(warp[0], a, b, c) + 9.0 * _read(warp[1], d, e, f),
        y + 55.0 * _read(warp[1], a, b, c) + 9.0 * _read(warp[2], d, e, f),
        x + 55.0 * _read(warp[2], a, b, c) + 9.0 * _read(warp[0], d, e, f),
    )


@njit(cache=True)
def _cytoplasm(z: float, y: float, x: float, margin: float, look: Any, tiles: Any) -> Any:
    """Gray value inside a neurite, outside its mitochondria."""
    cytoplasm, vesicles, _, reticulum, gate = tiles
    u, v, w = (z + look[5]) / TILE_NM, (y + look[6]) / TILE_NM, (x + look[7]) / TILE_NM
    gray = look[0] + look[1] * _read(cytoplasm, u, v, w) + 5.0 * _read(gate, z / 70.0 + look[5], y / 70.0, x / 70.0)
    if look[2] > 0.0:
        crowd = _read(gate, z / 130.0 + look[6], y / 130.0, x / 130.0)
        if crowd > 0.2:
            gray += min(1.0, (crowd - 0.2) * 4.0) * look[2] * _read(vesicles, u, v, w)
    if look[3] > 0.0 and margin > 12.0:
        gray += look[3] * min(1.0, (margin - 12.0) / 12.0) * _read(reticulum, u * 0.6, v * 0.6, w * 0.6)
    return gray


@njit(cache=True)
def _boundary(
    gray: float,
    z: float,
    y: float,
    x: float,
    pair: tuple[int, int],
    margin: float,
    column: int,
    gate: Any,
    profile: Any,
) -> Any:
    """Darken a gray value by the membranes, and now and then the synaptic density, between two neurites."""
    strength = 0.95 + 0.16 * _read(gate, z / 28.0, y / 28.0, x / 28.0)
    faint = _read(gate, z / 60.0 + 17.0, y / 60.0 + 41.0, x / 60.0 + 3.0)
    if faint < -1.4:
        strength -= min(0.45, (-1.4 - faint) * 0.8)
    row = min(int(margin / CLIP_NM * 127.0), 127)
    gray += (_MEMBRANE_GRAY - gray) * min(max(strength, 0.2), 1.0) * profile[row, column]
    chance = _hash(min(pair), max(pair))
    if chance < 0.4:
        dense = _read(gate, z / 75.0 + 320.0 * chance, y / 75.0 + 211.0 * chance, x / 75.0)
        reach = 34.0 if pair[0] > pair[1] else 14.0
        if dense > 1.3 and margin < reach:
            gray += (_DENSITY_GRAY - gray) * min(1.0, (dense - 1.3) * 2.5) * (1.0 - (margin / reach) ** 2)
    return gray


@njit(cache=True)
def _two_nearest(
    cones: Any, owner: Any, found: Any, lower: Any, kept: int, moved: float, p: tuple[float, float, float]
) -> tuple[int, int, float, float]:
    """The nearest neurite at a point, the nearest other one (-1: none near), and their membrane.

    Returns:
        Both owners, the distance (nm, at most CLIP_NM) to the membrane between them, and its tilt: 0 upright in the
        section, 1 flat in it.
    """
    d1, d2, o1, o2 = 1e9, 1e9, -1, -1
    z1 = y1 = x1 = z2 = y2 = x2 = 0.0
    for n in range(kept):
        least = lower[n] - moved
        if least > d2 or least > d1 + 2.0 * CLIP_NM:
            break
        who = owner[found[n]]
        if who == o1 and least > d1:
            continue
        d, gz, gy, gx = to_cone(cones[found[n]], p[0], p[1], p[2])
        if d < d1:
            if who != o1:
                d2, o2, z2, y2, x2 = d1, o1, z1, y1, x1
            d1, o1, z1, y1, x1 = d, who, gz, gy, gx
        elif d < d2 and who != o1:
            d2, o2, z2, y2, x2 = d, who, gz, gy, gx
    if o2 < 0:
        return o1, o2, CLIP_NM, 0.0
    sz, sy, sx = z2 - z1, y2 - y1, x2 - x1
    slope = math.sqrt(sz * sz + sy * sy + sx * sx) + 1e-6
    return o1, o2, min((d2 - d1) / max(slope, 0.7), CLIP_NM), abs(sz) / slope


@njit(cache=True)
def _organelle(
    cones: Any, owner: Any, found: Any, lower: Any, kept: int, moved: float, p: tuple[float, float, float], who: int
) -> tuple[float, float]:
    """Distance (nm, below 0 inside) to this neurite's nearest mitochondrion, and the tilt of its membrane."""
    inside, tilt = 1e9, 0.0
    for n in range(kept):
        if owner[found[n]] == who and lower[n] - moved < inside:
            d, gz, _, _ = to_cone(cones[found[n]], p[0], p[1], p[2])
            if d < inside:
                inside, tilt = d, abs(gz)
    return inside, tilt


@njit(parallel=True, cache=True)
def rasterise(
    first: int,
    voxel: Any,
    drift: Any,
    block: Any,
    neurites: Any,
    mitochondria: Any,
    looks: Any,
    texture: Any,
    labels: Any,
    gray: Any,
) -> None:
    """Fill a slab of labels and gray values; each block of voxels by itself, so that threads change nothing.

    Args:
        first: section with which the slab begins.
        voxel: (3,) nm.
        drift: (sections, 2) float, misalignment of each section in nm (y, x).
        block: (3,) voxels that share their list of cones.
        neurites: cones (n, 12), the owner of each (n,), and what `hash_cones` gave for them.
        mitochondria: likewise.
        looks: (k, 8), see `neurite_looks`.
        texture: cytoplasm, vesicles, cristae, reticulum, gate; warp (3, 64, 64, 64); membrane profile (128, 32).
        labels: (z, y, x) uint32, filled with owner + 1.
        gray: (z, y, x) float32, filled.
    """
    cones, owner, cells = neurites
    mito, mito_owner, mito_cells = mitochondria
    tiles, warp, profile = texture
    depth, height, width = labels.shape
    nz, ny, nx = -(-depth // block[0]), -(-height // block[1]), -(-width // block[2])
    extent = math.sqrt((block[0] * voxel[0]) ** 2 + (block[1] * voxel[1]) ** 2 + (block[2] * voxel[2]) ** 2)
    radius = 0.7 * extent + 8.0
    for index in prange(nz * ny * nx):
        iz, iy, ix = index // (ny * nx) * block[0], index // nx % ny * block[1], index % nx * block[2]
        found, lower = np.empty(_MOST, np.int32), np.empty(_MOST, np.float32)
        found_mito, lower_mito = np.empty(_MOST, np.int32), np.empty(_MOST, np.float32)
        z = (first + iz + 0.5 * block[0]) * voxel[0]
        centre = _bent(warp, z, (iy + 0.5 * block[1]) * voxel[1], (ix + 0.5 * block[2]) * voxel[2])
        kept = near_block(cones, cells, centre, 2.0 * radius + 2.0 * CLIP_NM, 1e8, found, lower)
        kept_mito = near_block(mito, mito_cells, centre, 1e8, radius + 30.0, found_mito, lower_mito)
        for dz in range(iz, min(iz + block[0], depth)):
            for dy in range(iy, min(iy + block[1], height)):
                for dx in range(ix, min(ix + block[2], width)):
                    z = (first + dz + 0.5) * voxel[0]
                    y = (dy + 0.5) * voxel[1] + drift[first + dz, 0]
                    x = (dx + 0.5) * voxel[2] + drift[first + dz, 1]
                    p = _bent(warp, z, y, x)
                    moved = math.sqrt((p[0] - centre[0]) ** 2 + (p[1] - centre[1]) ** 2 + (p[2] - centre[2]) ** 2)
                    who, other, margin, tilt = _two_nearest(cones, owner, found, lower, kept, STEEPEST * moved, p)
                    inside, tilt_in = 1e9, 0.0
                    if kept_mito > 0:
                        inside, tilt_in = _organelle(mito, mito_owner, found_mito, lower_mito, kept_mito, moved, p, who)
                        inside = max(inside, 20.0 - margin)
                    look = looks[who]
                    if inside < 0.0:
                        u, v = (y + look[6]) / TILE_NM, (x + look[7]) / TILE_NM
                        value = look[4] + _read(tiles[2], (z + look[5]) / TILE_NM, u, v)
                    else:
                        value = _cytoplasm(z, y, x, margin, look, tiles)
                    if abs(inside) < 30.0:
                        row = min(int(abs(inside) / CLIP_NM * 127.0), 127)
                        value += (_MITOCHONDRIAL_MEMBRANE_GRAY - value) * 0.9 * profile[row, int(tilt_in * 31.0 + 0.5)]
                    if margin < CLIP_NM:
                        column = int(tilt * 31.0 + 0.5)
                        value = _boundary(value, z, y, x, (who, other), margin, column, tiles[4], profile)
                    labels[dz, dy, dx] = who + 1
                    gray[dz, dy, dx] = value
