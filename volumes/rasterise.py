"""Which neurite owns each voxel of a slab, and how gray is it before the microscope adds its share?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from fgnet.volumes.ultrastructure import CLIP_NM, TILE_NM, _bent, _hash, _near_block, _read, _to_cone
from numba import njit, prange

MEMBRANE_GRAY = 72.0
_STRETCH = 1.5
_MOST = 768


@njit(cache=True)
def _stain(
    z: float,
    y: float,
    x: float,
    owner: int,
    other: int,
    margin: float,
    tilt: float,
    inside: float,
    look: Any,
    tiles: Any,
    profile: Any,
) -> Any:
    """Gray value at a point (nm) of `owner`, `margin` nm from its boundary with `other` and `inside` nm outside its nearest mitochondrion."""
    cytoplasm, vesicles, cristae, reticulum, gate = tiles
    u, v, w = (z + look[5]) / TILE_NM, (y + look[6]) / TILE_NM, (x + look[7]) / TILE_NM
    column = int(tilt * 31.0 + 0.5)
    if inside < 0.0:
        gray = look[4] + _read(cristae, u, v, w)
    else:
        gray = look[0] + look[1] * _read(cytoplasm, u, v, w) + 5.0 * _read(gate, z / 70.0 + look[5], y / 70.0, x / 70.0)
        if look[2] > 0.0:
            crowd = _read(gate, z / 130.0 + look[6], y / 130.0, x / 130.0)
            if crowd > 0.3:
                gray += min(1.0, (crowd - 0.3) * 4.0) * look[2] * _read(vesicles, v, w, u)
        if look[3] > 0.0 and margin > 12.0:
            gray += look[3] * min(1.0, (margin - 12.0) / 12.0) * _read(reticulum, u * 0.6, v * 0.6, w * 0.6)
    if abs(inside) < 30.0:
        row = min(int(abs(inside) / CLIP_NM * 127.0), 127)
        gray += (84.0 - gray) * 0.9 * profile[row, column]
    if margin < CLIP_NM:
        row = min(int(margin / CLIP_NM * 127.0), 127)
        strength = 0.95 + 0.16 * _read(gate, z / 28.0, y / 28.0, x / 28.0)
        faint = _read(gate, z / 60.0 + 17.0, y / 60.0 + 41.0, x / 60.0 + 3.0)
        if faint < -1.4:
            strength -= min(0.45, (-1.4 - faint) * 0.8)
        gray += (MEMBRANE_GRAY - gray) * min(max(strength, 0.2), 1.0) * profile[row, column]
        pair = _hash(min(owner, other), max(owner, other))
        if pair < 0.4:
            dense = _read(gate, z / 75.0 + 64.0 * pair * 5.0, y / 75.0 + 211.0 * pair, x / 75.0)
            if dense > 1.35:
                reach = 30.0 if owner > other else 16.0
                gray += (58.0 - gray) * min(1.0, (dense - 1.35) * 3.0) * max(0.0, 1.0 - (margin / reach) ** 2)
    return gray


@njit(parallel=True, cache=True)
def rasterise(
    first: int,
    voxel: Any,
    drift: Any,
    block: Any,
    cones: Any,
    owner: Any,
    cells: Any,
    mito: Any,
    mito_owner: Any,
    mito_cells: Any,
    looks: Any,
    tiles: Any,
    warp: Any,
    profile: Any,
    labels: Any,
    gray: Any,
) -> None:
    """Fill a slab of labels and gray values.

    Args:
        first: section with which the slab begins.
        voxel: (3,) nm.
        drift: (sections, 2) float, misalignment of each section in nm (y, x).
        block: (3,) voxels that share their list of cones.
        cones: (n, 8); `owner` (n,), `cells` their hash; `mito`, `mito_owner` and `mito_cells` likewise.
        looks: (k, 8), see `neurite_looks`.
        tiles: cytoplasm, vesicles, cristae, reticulum, gate.
        warp: (64, 64, 64, 3).
        profile: (128, 32).
        labels: (z, y, x) uint32, filled with owner + 1.
        gray: (z, y, x) float32.
    """
    depth, height, width = labels.shape
    nz, ny, nx = -(-depth // block[0]), -(-height // block[1]), -(-width // block[2])
    radius = 0.5 * math.sqrt((block[0] * voxel[0]) ** 2 + (block[1] * voxel[1]) ** 2 + (block[2] * voxel[2]) ** 2)
    radius = radius * _STRETCH + 8.0
    for index in prange(nz * ny * nx):
        iz, iy, ix = index // (ny * nx) * block[0], index // nx % ny * block[1], index % nx * block[2]
        found, lower = np.empty(_MOST, np.int32), np.empty(_MOST, np.float32)
        found_mito, lower_mito = np.empty(64, np.int32), np.empty(64, np.float32)
        z = (first + iz + 0.5 * block[0]) * voxel[0]
        y = (iy + 0.5 * block[1]) * voxel[1]
        x = (ix + 0.5 * block[2]) * voxel[2]
        z, y, x = _bent(warp, z, y, x)
        kept = _near_block(cones, cells, z, y, x, 2 * radius + 2 * CLIP_NM, 1e8, found, lower)
        kept_mito = _near_block(mito, mito_cells, z, y, x, 1e8, radius + 30.0, found_mito, lower_mito)
        for dz in range(iz, min(iz + block[0], depth)):
            for dy in range(iy, min(iy + block[1], height)):
                for dx in range(ix, min(ix + block[2], width)):
                    rz = (first + dz + 0.5) * voxel[0]
                    ry = (dy + 0.5) * voxel[1] + drift[first + dz, 0]
                    rx = (dx + 0.5) * voxel[2] + drift[first + dz, 1]
                    pz, py, px = _bent(warp, rz, ry, rx)
                    f1, f2, o1, o2 = 1e9, 1e9, -1, -1
                    z1 = y1 = x1 = z2 = y2 = x2 = 0.0
                    for n in range(kept):
                        if lower[n] - radius > min(f2, f1 + 2 * CLIP_NM):
                            break
                        d, nz_, ny_, nx_ = _to_cone(cones[found[n]], pz, py, px)
                        o = owner[found[n]]
                        if d < f1:
                            if o != o1:
                                f2, o2, z2, y2, x2 = f1, o1, z1, y1, x1
                            f1, o1, z1, y1, x1 = d, o, nz_, ny_, nx_
                        elif d < f2 and o != o1:
                            f2, o2, z2, y2, x2 = d, o, nz_, ny_, nx_
                    margin, tilt = CLIP_NM, 0.0
                    if o2 >= 0:
                        sz, sy, sx = z2 - z1, y2 - y1, x2 - x1
                        slope = math.sqrt(sz * sz + sy * sy + sx * sx) + 1e-6
                        margin = min((f2 - f1) / max(slope, 0.7), CLIP_NM)
                        tilt = abs(sz) / slope
                    inside = 1e9
                    for n in range(kept_mito):
                        if mito_owner[found_mito[n]] == o1 and lower_mito[n] - radius < inside:
                            d, nz_, ny_, nx_ = _to_cone(mito[found_mito[n]], pz, py, px)
                            if d < inside:
                                inside = d
                                if abs(d) < margin:
                                    tilt = abs(nz_)
                    if inside < 1e8:
                        inside = max(inside, 20.0 - margin)
                    labels[dz, dy, dx] = o1 + 1
                    gray[dz, dy, dx] = _stain(rz, ry, rx, o1, o2, margin, tilt, inside, looks[o1], tiles, profile)
