"""How does one get neuropil without a microscope? Seeded synthetic tissue, raw and labels, at any voxel size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fgnet.volumes.cones import as_cones, hash_cones
from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import as_triple
from fgnet.volumes.microscope import Microscope, image_section, misalignment
from fgnet.volumes.neurites import grow_neurites
from fgnet.volumes.rasterise import BLOCK_NM, REACH_NM, rasterise
from fgnet.volumes.space import Space
from fgnet.volumes.ultrastructure import membrane_profile, neurite_looks, paint_tiles

_SLAB = 32
_DUST = 24


@dataclass(frozen=True)
class NeuropilOptions:
    """What to make.

    Args:
        shape: voxels (z, y, x).
        voxel_size: nm (z, y, x), 2 to 100; neurites keep their calibre in nm. A z at least twice the finer of y and
            x is taken as serial sections, with misalignment and sections stained one by one.
        seed: of every random choice; the same options give the same bytes.
        noise: standard deviation of the noise at mid gray, in gray levels; see `Microscope`.
        artefacts: folds, dirt and sections without contrast (serial sections only).

    Raises:
        GeometryError: a shape, voxel size, seed or noise out of range.
    """

    shape: tuple[int, int, int] = (64, 512, 512)
    voxel_size: tuple[float, float, float] = (10.0, 10.0, 10.0)
    seed: int = 0
    noise: float = 5.0
    artefacts: bool = True

    def __post_init__(self) -> None:
        shape = as_triple(self.shape, "the shape")
        if min(shape) < 1:
            raise GeometryError(f"the shape {shape} must be at least 1 on every axis", remedy="give voxels as z,y,x")
        size = Space(self.voxel_size).voxel_size
        if not all(2.0 <= length <= 100.0 for length in size):
            raise GeometryError(f"the voxel size {size} nm must lie between 2 and 100 on every axis")
        if self.seed < 0:
            raise GeometryError(f"the seed {self.seed} must not be negative")
        if not 0.0 <= self.noise <= 100.0:
            raise GeometryError(f"the noise {self.noise} must lie between 0 and 100 gray levels")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "voxel_size", size)


@dataclass(frozen=True)
class Neuropil:
    """Synthetic tissue.

    Args:
        raw: (z, y, x) uint8.
        labels: (z, y, x) uint32, 1..objects; every id is one 6-connected piece, and ids meet without a gap.
        space: voxel size.
        objects: number of ids.
    """

    raw: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.uint32] = field(repr=False)
    space: Space
    objects: int


def make_neuropil(options: NeuropilOptions, report: Callable[[int], None] | None = None) -> Neuropil:
    """Grow neurites, fill the space between them, stain them and image them.

    The same options give the same bytes, whatever the number of threads.

    Args:
        options: what to make.
        report: called with the number of finished sections after each slab.
    """
    depth, height, width = options.shape
    voxel = options.voxel_size
    size = (depth * voxel[0], height * voxel[1], width * voxel[2])
    growth, painting, looking, drifting, imaging = np.random.SeedSequence(options.seed).spawn(5)
    neurites = grow_neurites(size, growth)
    tiles = paint_tiles(voxel, painting)
    textures = tuple(tiles[name] for name in ("cytoplasm", "vesicles", "cristae", "reticulum", "gate"))
    looks = neurite_looks(neurites, np.random.default_rng(looking))
    microscope = Microscope(voxel, noise=options.noise, artefacts=options.artefacts)
    drift = misalignment(microscope, depth, np.random.default_rng(drifting))
    block = np.array([max(1, round(BLOCK_NM / length)) for length in voxel], dtype=np.int64)
    cones = as_cones(neurites.segments, neurites.flatness[neurites.owner])
    mito = as_cones(neurites.mitochondria, np.zeros((len(neurites.mitochondria), 3), dtype=np.float32))
    tissue = (cones, neurites.owner, hash_cones(cones, size, REACH_NM))
    organelles = (mito, neurites.mitochondria_owner, hash_cones(mito, size, 120.0))
    texture = (textures, tiles["warp"], membrane_profile(voxel))
    labels = np.zeros(options.shape, dtype=np.uint32)
    raw = np.zeros(options.shape, dtype=np.uint8)
    seeds = imaging.spawn(depth)
    slab = max(1, _SLAB // int(block[0])) * int(block[0])
    for first in range(0, depth, slab):
        part = labels[first : first + slab]
        stain = np.empty(part.shape, dtype=np.float32)
        rasterise(first, np.array(voxel), drift, block, tissue, organelles, looks, texture, part, stain)
        for z in range(len(part)):
            raw[first + z] = image_section(stain[z], microscope, seeds[first + z])
        if report is not None:
            report(first + len(part))
    objects = separate_pieces(labels)
    return Neuropil(raw, labels, Space(voxel), objects)


def separate_pieces(labels: NDArray[np.uint32], dust: int = _DUST) -> int:
    """Give each 6-connected piece its own id 1..n, in place; pieces of fewer than `dust` voxels join one beside them.

    Returns:
        The number of ids.
    """
    parents = np.arange(labels.size, dtype=np.uint32 if labels.size < 2**32 else np.uint64)
    _join_neighbours(labels, parents)
    _join_specks(labels.shape, parents, min(dust, 255))
    return int(_number(labels.reshape(-1), parents))


@njit(cache=True)
def _root(parents: Any, index: Any) -> Any:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


@njit(cache=True)
def _join(parents: Any, first: Any, second: Any) -> None:
    first, second = _root(parents, first), _root(parents, second)
    if first < second:
        parents[second] = first
    else:
        parents[first] = second


@njit(cache=True)
def _join_neighbours(labels: Any, parents: Any) -> None:
    """Join each voxel with the voxels before it, per axis, that have its label."""
    depth, height, width = labels.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                here, label = (z * height + y) * width + x, labels[z, y, x]
                if z > 0 and labels[z - 1, y, x] == label:
                    _join(parents, here, here - height * width)
                if y > 0 and labels[z, y - 1, x] == label:
                    _join(parents, here, here - width)
                if x > 0 and labels[z, y, x - 1] == label:
                    _join(parents, here, here - 1)


@njit(cache=True)
def _join_specks(shape: tuple[int, int, int], parents: Any, dust: int) -> None:
    """Join pieces of fewer than `dust` voxels with one that touches them from the front, from above or from the left.

    A speck in the volume's first corner has none there, and stays.
    """
    depth, height, width = shape
    sizes = np.zeros(depth * height * width, np.uint8)
    for here in range(len(sizes)):
        root = _root(parents, here)
        sizes[root] = min(sizes[root] + 1, 255)
    for here in range(len(sizes)):
        root = _root(parents, here)
        if sizes[root] >= dust:
            continue
        for back, room in (
            (1, here % width),
            (width, here // width % height),
            (height * width, here // (height * width)),
        ):
            if room > 0 and _root(parents, here - back) != root:
                parents[root] = _root(parents, here - back)
                break


@njit(cache=True)
def _number(flat: Any, parents: Any) -> int:
    """Write the number of each voxel's piece, 1..n in scan order of the roots; returns n."""
    count = 0
    for here in range(len(flat)):
        if _root(parents, here) == here:
            count += 1
            flat[here] = count
    for here in range(len(flat)):
        flat[here] = flat[_root(parents, here)]
    return count
