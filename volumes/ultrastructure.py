"""What does stained tissue look like close up? Textures of cytoplasm and organelles, and the profile of a membrane."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fgnet.volumes.neurites import AXON, DENDRITE, GLIA, Neurites

CLIP_NM = 46.0
"""Distances from a membrane are exact up to here."""
TILE_NM = 5.0
TILE = 128

Array = NDArray[np.float32]


def _smooth_noise(shape: tuple[int, ...], sigma: float | tuple[float, ...], rng: np.random.Generator) -> Array:
    """Periodic Gaussian noise with unit variance; coarse noise is drawn at half the resolution."""
    if not isinstance(sigma, tuple) and sigma >= 6.0:
        half = _smooth_noise(tuple(extent // 2 for extent in shape), sigma / 2, rng)
        doubled = half.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        return np.asarray(ndimage.gaussian_filter(doubled, 1.0, mode="wrap", truncate=3.0), dtype=np.float32)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3.0)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _in_section(tile: Array, voxel_size: tuple[float, float, float]) -> Array:
    """A texture as one section shows it: averaged over the section's thickness and over a pixel."""
    sigma = [0.32 * size / TILE_NM for size in voxel_size]
    return np.asarray(ndimage.gaussian_filter(tile, sigma, mode="wrap"), dtype=np.float32)


def paint_tiles(voxel_size: tuple[float, float, float], seed: np.random.SeedSequence) -> dict[str, Array]:
    """Periodic textures, (128, 128, 128) float32 at 5 nm, in gray levels to be added, and smooth noise.

    Returns:
        cytoplasm, vesicles, cristae, reticulum; gate, (64, 64, 64) of unit variance; warp, (3, 64, 64, 64).
    """
    rng = np.random.default_rng(seed)
    cube = (TILE, TILE, TILE)
    grain = 8.0 * _smooth_noise(cube, 1.6, rng) + 5.0 * _smooth_noise(cube, 4.0, rng)
    dots = _smooth_noise(cube, 2.2, rng)
    cytoplasm = grain - 60.0 * np.clip(dots - 1.6, 0, 1)
    strands = _smooth_noise(cube, (1.8, 1.8, 12.0), rng)
    cytoplasm -= 36.0 * np.clip(strands - 1.8, 0, 1)
    sheet, part = _smooth_noise(cube, 9.0, rng), _smooth_noise(cube, 12.0, rng)
    reticulum = -62.0 * np.exp(-((sheet / 0.16) ** 2)) * np.clip((part - 0.35) * 3.0, 0, 1)
    phase = np.arange(TILE, dtype=np.float32)[:, None] * (2 * math.pi * 13 / TILE)
    bend = 3.6 * _smooth_noise(cube, 7.0, rng)
    fold = np.clip(0.7 + 0.5 * _smooth_noise(cube, 8.0, rng), 0.0, 1.4)
    cristae = 14.0 * fold * np.sin(phase[None] + bend) + 10.0 * _smooth_noise(cube, 2.5, rng)
    tiles = {
        "cytoplasm": cytoplasm,
        "vesicles": _vesicles(rng),
        "cristae": cristae,
        "reticulum": reticulum.astype(np.float32),
    }
    painted = {name: _in_section(tile, voxel_size) for name, tile in tiles.items()}
    painted["gate"] = _smooth_noise((64, 64, 64), 2.0, rng)
    painted["warp"] = np.stack([_smooth_noise((64, 64, 64), 2.0, rng) for _ in range(3)])
    return painted


def _vesicles(rng: np.random.Generator) -> Array:
    """Synaptic vesicles: dark shells of 36 nm with a clear lumen, a few with a dense core."""
    tile = np.zeros((TILE, TILE, TILE), dtype=np.float32)
    centres = np.empty((700, 3))
    count = 0
    for centre in rng.random((3000, 3)) * TILE:
        apart = np.abs(centres[:count] - centre)
        near = (np.minimum(apart, TILE - apart) ** 2).sum(axis=1)
        if count == len(centres) or (near < 81.0).any():
            continue
        centres[count] = centre
        count += 1
        box = np.arange(-7, 8)
        index = [(np.floor(c).astype(int) + box) % TILE for c in centre]
        offset = np.meshgrid(*[np.floor(c) + box - c for c in centre], indexing="ij")
        radius = np.sqrt(sum(o * o for o in offset)) * TILE_NM
        dense = rng.random() < 0.04
        shell = -120.0 * np.exp(-(((radius - rng.uniform(15.0, 20.0)) / 5.0) ** 2))
        tile[np.ix_(*index)] += -80.0 * (radius < 19.0) if dense else shell
    return tile


def membrane_profile(voxel_size: tuple[float, float, float]) -> Array:
    """Darkness 0..1 of a membrane pair by distance and tilt, (128, 32) float32.

    Rows: 0..CLIP_NM from the middle of the cleft, at the section's mid plane. Columns: from a membrane that stands
    upright in the section to one that lies in it, where the section's thickness smears the profile.
    """
    thickness = max(voxel_size[0], 16.0)
    distance = np.linspace(0.0, CLIP_NM, 128)[:, None, None]
    tilt = np.linspace(0.0, 1.0, 32)[None, :, None]
    depth = (np.arange(33) / 32 - 0.5)[None, None, :] * thickness
    across = np.abs(distance + depth * tilt)
    pair = np.exp(-(((across - 8.0) / 6.5) ** 2)) + 0.35 * np.exp(-((across / 5.0) ** 2))
    return np.asarray(np.minimum(pair, 1.0).mean(axis=2), dtype=np.float32)


def neurite_looks(neurites: Neurites, rng: np.random.Generator) -> Array:
    """How each neurite is stained, (k, 8) float32.

    Columns: gray of the cytoplasm, strength of its texture, of vesicles, of reticulum, gray of its mitochondria, and
    the offset (z, y, x) in nm at which it reads the textures.
    """
    kind, n = neurites.kind, len(neurites.kind)
    looks = np.empty((n, 8), dtype=np.float32)
    gray = rng.normal(165.0, 9.0, n) + np.where(kind == DENDRITE, 8.0, 0.0) - np.where(kind == GLIA, 6.0, 0.0)
    gray -= np.where(rng.random(n) < 0.12, rng.uniform(15.0, 38.0, n), 0.0)
    looks[:, 0] = gray
    looks[:, 1] = rng.uniform(0.9, 1.6, n)
    looks[:, 2] = np.where((kind == AXON) & (rng.random(n) < 0.65), rng.uniform(0.6, 1.0, n), 0.0)
    looks[:, 3] = np.where(kind == DENDRITE, rng.uniform(0.8, 1.0, n), 0.35 * (rng.random(n) < 0.5))
    looks[:, 4] = rng.normal(rng.uniform(92.0, 112.0), 6.0, n)
    looks[:, 5:] = rng.random((n, 3)) * TILE * TILE_NM
    return looks
