"""What does the electron beam meet at each voxel? The neurite it lies in, and the stain of membranes and organelles there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from fgnet.volumes.neurites import AXON, DENDRITE, GLIA, Neurites
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

CLIP_NM = 46.0
"""Distances from a membrane are exact up to here."""
CELL_NM = 256.0
TILE_NM = 5.0
TILE = 128

Array = NDArray[np.float32]


def _smooth_noise(shape: tuple[int, ...], sigma: float | tuple[float, ...], rng: np.random.Generator) -> Array:
    """Periodic Gaussian noise with unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _in_section(tile: Array, voxel_size: tuple[float, float, float]) -> Array:
    """A texture as one section shows it: averaged over the section's thickness and over a pixel."""
    sigma = [0.32 * size / TILE_NM for size in voxel_size]
    return np.asarray(ndimage.gaussian_filter(tile, sigma, mode="wrap"), dtype=np.float32)


def paint_tiles(voxel_size: tuple[float, float, float], seed: np.random.SeedSequence) -> dict[str, Array]:
    """Periodic textures, (128, 128, 128) float32 at 5 nm, in gray levels to be added, and the noise that places and bends things.

    Returns:
        cytoplasm, vesicles, cristae, reticulum; gate, (64, 64, 64) of unit variance; warp, (64, 64, 64, 3).
    """
    rng = np.random.default_rng(seed)
    cube = (TILE, TILE, TILE)
    grain = 11.0 * _smooth_noise(cube, 1.6, rng) + 7.0 * _smooth_noise(cube, 4.0, rng)
    dots = _smooth_noise(cube, 2.2, rng)
    cytoplasm = grain - 34.0 * np.clip(dots - 1.5, 0, 1)
    strands = _smooth_noise(cube, (2.0, 2.0, 40.0), rng)
    cytoplasm -= 22.0 * np.clip(strands - 1.7, 0, 1)
    sheet, part = _smooth_noise(cube, 9.0, rng), _smooth_noise(cube, 12.0, rng)
    reticulum = -62.0 * np.exp(-((sheet / 0.16) ** 2)) * np.clip((part - 0.35) * 3.0, 0, 1)
    phase = np.arange(TILE, dtype=np.float32)[:, None] * (2 * math.pi * 13 / TILE)
    bend = 2.2 * _smooth_noise(cube, 9.0, rng)
    cristae = 13.0 * np.sin(phase[None] + bend) + 6.0 * _smooth_noise(cube, 2.0, rng)
    tiles = {
        "cytoplasm": cytoplasm,
        "vesicles": _vesicles(rng),
        "cristae": cristae,
        "reticulum": reticulum.astype(np.float32),
    }
    painted = {name: _in_section(tile, voxel_size) for name, tile in tiles.items()}
    painted["gate"] = _smooth_noise((64, 64, 64), 2.0, rng)
    painted["warp"] = np.stack([_smooth_noise((64, 64, 64), 2.0, rng) for _ in range(3)], axis=-1)
    return painted


def _vesicles(rng: np.random.Generator) -> Array:
    """Synaptic vesicles: dark shells of 36 nm with a clear lumen, a few with a dense core."""
    tile = np.zeros((TILE, TILE, TILE), dtype=np.float32)
    centres = np.empty((0, 3))
    for _ in range(4000):
        centre = rng.random(3) * TILE
        apart = np.abs(centres - centre)
        if len(centres) and np.linalg.norm(np.minimum(apart, TILE - apart), axis=1).min() < 9.0:
            continue
        centres = np.vstack([centres, centre])
        box = np.arange(-7, 8)
        index = [(np.floor(c).astype(int) + box) % TILE for c in centre]
        offset = np.meshgrid(*[np.floor(c) + box - c for c in centre], indexing="ij")
        radius = np.sqrt(sum(o * o for o in offset)) * TILE_NM
        dense = rng.random() < 0.04
        shell = -95.0 * np.exp(-(((radius - rng.uniform(15.0, 20.0)) / 5.0) ** 2))
        tile[np.ix_(*index)] += -80.0 * (radius < 19.0) if dense else shell
    return tile


def membrane_profile(voxel_size: tuple[float, float, float]) -> Array:
    """Darkness 0..1 of a membrane pair by distance and tilt, (128, 32) float32.

    Rows: 0..CLIP_NM from the middle of the cleft, in the section's middle. Columns: 0 for a membrane that stands upright in the section,
    31 for one that lies in it, where the section's thickness smears the profile.
    """
    thickness = voxel_size[0]
    distance = np.linspace(0.0, CLIP_NM, 128)[:, None, None]
    tilt = np.linspace(0.0, 1.0, 32)[None, :, None]
    depth = (np.arange(33) / 32 - 0.5)[None, None, :] * thickness
    across = np.abs(distance + depth * tilt)
    pair = np.exp(-(((across - 7.5) / 5.5) ** 2)) + 0.35 * np.exp(-((across / 5.0) ** 2))
    return np.asarray(np.minimum(pair, 1.0).mean(axis=2), dtype=np.float32)


def neurite_looks(neurites: Neurites, rng: np.random.Generator) -> Array:
    """How each neurite is stained, (k, 8) float32.

    Columns: gray of the cytoplasm, strength of its texture, of vesicles, of reticulum, gray of its mitochondria, and the offset (z, y, x)
    in nm at which it reads the textures.
    """
    kind, n = neurites.kind, len(neurites.kind)
    looks = np.empty((n, 8), dtype=np.float32)
    gray = rng.normal(165.0, 9.0, n) + np.where(kind == DENDRITE, 8.0, 0.0) - np.where(kind == GLIA, 6.0, 0.0)
    gray -= np.where(rng.random(n) < 0.12, rng.uniform(15.0, 38.0, n), 0.0)
    looks[:, 0] = gray
    looks[:, 1] = rng.uniform(0.7, 1.25, n)
    looks[:, 2] = np.where((kind == AXON) & (rng.random(n) < 0.65), rng.uniform(0.6, 1.0, n), 0.0)
    looks[:, 3] = np.where(kind == DENDRITE, rng.uniform(0.8, 1.0, n), 0.35 * (rng.random(n) < 0.5))
    looks[:, 4] = rng.normal(108.0, 7.0, n)
    looks[:, 5:] = rng.random((n, 3)) * TILE * TILE_NM
    return looks


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
def _bent(warp: Any, z: float, y: float, x: float) -> tuple[float, float, float]:
    """Where a point of the image lies among the straight cones: two octaves of smooth displacement, nm."""
    a, b, c = z / 75.0, y / 75.0, x / 75.0
    d, e, f = z / 24.0 + 11.0, y / 24.0 + 5.0, x / 24.0 + 29.0
    return (
        z + 52.0 * _read(warp[..., 0], a, b, c) + 9.0 * _read(warp[..., 1], d, e, f),
        y + 52.0 * _read(warp[..., 1], a, b, c) + 9.0 * _read(warp[..., 2], d, e, f),
        x + 52.0 * _read(warp[..., 2], a, b, c) + 9.0 * _read(warp[..., 0], d, e, f),
    )


@njit(cache=True)
def _to_cone(cone: Any, z: float, y: float, x: float) -> tuple[float, float, float, float]:
    """Signed distance (nm) to a round cone, and the unit vector that leads away from its axis."""
    az, ay, ax = cone[0], cone[1], cone[2]
    bz, by, bx = cone[3] - az, cone[4] - ay, cone[5] - ax
    pz, py, px = z - az, y - ay, x - ax
    square = bz * bz + by * by + bx * bx
    along = (pz * bz + py * by + px * bx) / square if square > 0 else 0.0
    along = min(max(along, 0.0), 1.0)
    pz, py, px = pz - along * bz, py - along * by, px - along * bx
    distance = math.sqrt(pz * pz + py * py + px * px) + 1e-6
    return distance - cone[6] - along * (cone[7] - cone[6]), pz / distance, py / distance, px / distance


@njit(cache=True)
def _fill_cells(cones: Any, reach: float, dims: Any, starts: Any, items: Any) -> None:
    """Which cones come near which cell; called once to count (`items` empty) and once to fill."""
    fill = len(items) > 0
    for n in range(len(cones)):
        extent = max(cones[n, 6], cones[n, 7]) + reach
        low, high = np.zeros(3, np.int64), np.zeros(3, np.int64)
        for axis in range(3):
            low[axis] = max(0, int(math.floor((min(cones[n, axis], cones[n, axis + 3]) - extent) / CELL_NM)) + 2)
            high[axis] = min(
                dims[axis] - 1, int(math.floor((max(cones[n, axis], cones[n, axis + 3]) + extent) / CELL_NM)) + 2
            )
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                for k in range(low[2], high[2] + 1):
                    z, y, x = (i - 1.5) * CELL_NM, (j - 1.5) * CELL_NM, (k - 1.5) * CELL_NM
                    if _to_cone(cones[n], z, y, x)[0] > reach + 0.87 * CELL_NM:
                        continue
                    cell = (i * dims[1] + j) * dims[2] + k
                    if fill:
                        items[starts[cell]] = n
                    starts[cell] += 1


def hash_cones(cones: Array, size: tuple[float, float, float], reach: float) -> tuple[Any, Any, Any]:
    """Cells of 256 nm over the volume and a margin: dims (3,), starts (cells + 1,), cone indices."""
    dims = np.array([math.ceil(length / CELL_NM) + 4 for length in size], dtype=np.int64)
    counts = np.zeros(int(dims.prod()), dtype=np.int64)
    _fill_cells(cones, reach, dims, counts, np.empty(0, dtype=np.int32))
    starts = np.concatenate([[0], np.cumsum(counts)])
    items = np.empty(max(1, int(starts[-1])), dtype=np.int32)
    if starts[-1]:
        _fill_cells(cones, reach, dims, starts[:-1].copy(), items)
    return dims, starts, items


@njit(cache=True)
def _near_block(
    cones: Any, cells: Any, z: float, y: float, x: float, slack: float, limit: float, found: Any, lower: Any
) -> int:
    """The cones that matter within a block, nearest first; returns how many.

    Args:
        cones: (n, 8).
        cells: dims, starts, items.
        z: centre of the block; `y` and `x` too.
        slack: keep what is at most this much farther than the nearest.
        limit: and at most this far.
        found: filled with cone indices; `lower` with their distances to the centre.
    """
    dims, starts, items = cells
    i = min(max(int(z / CELL_NM + 2.0), 0), dims[0] - 1)
    j = min(max(int(y / CELL_NM + 2.0), 0), dims[1] - 1)
    k = min(max(int(x / CELL_NM + 2.0), 0), dims[2] - 1)
    cell = (i * dims[1] + j) * dims[2] + k
    first, last = starts[cell], starts[cell + 1]
    distances = np.empty(last - first, np.float32)
    nearest = np.float32(1e9)
    for n in range(last - first):
        distances[n] = _to_cone(cones[items[first + n]], z, y, x)[0]
        nearest = min(nearest, distances[n])
    kept = 0
    for n in np.argsort(distances):
        if distances[n] > min(nearest + slack, limit) or kept == len(found):
            break
        found[kept], lower[kept] = items[first + n], distances[n]
        kept += 1
    return kept


@njit(cache=True)
def _hash(a: int, b: int) -> Any:
    """A number in [0, 1) that two neurites share."""
    word = np.uint64(a * 2654435761 + b * 40503 + 12345)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((word ^ (word >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0
