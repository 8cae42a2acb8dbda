"""What does stained tissue look like close up? Textures of cytoplasm and organelles, and the profile of a membrane."""

from __future__ import annotations

import math

import numpy as np
from fgnet.volumes.neurites import AXON, DENDRITE, GLIA, Neurites
from numpy.typing import NDArray
from scipy import ndimage

CLIP_NM = 46.0
"""Distances from a membrane are exact up to here."""
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
    painted["warp"] = np.stack([_smooth_noise((64, 64, 64), 2.0, rng) for _ in range(3)])
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
        shell = -120.0 * np.exp(-(((radius - rng.uniform(15.0, 20.0)) / 5.0) ** 2))
        tile[np.ix_(*index)] += -80.0 * (radius < 19.0) if dense else shell
    return tile


def membrane_profile(voxel_size: tuple[float, float, float]) -> Array:
    """Darkness 0..1 of a membrane pair by distance and tilt, (128, 32) float32.

    Rows: 0..CLIP_NM from the middle of the cleft, at the section's mid plane. Columns: from a membrane that stands
    upright in the section to one that lies in it, where the section's thickness smears the profile.
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

    Columns: gray of the cytoplasm, strength of its texture, of vesicles, of reticulum, gray of its mitochondria, and
    the offset (z, y, x) in nm at which it reads the textures.
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
