"""What a run will do, decided before it starts: which blocks in which order, and what memory that takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blend_weights import WeightKind
from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple, as_triple, parse_roi
from fgnet.volumes.grid import PatchGrid

DEFAULT_MEMORY = 512 << 20
"""Bytes for the sums of unfinished chunks unless told otherwise."""

_SUM_BYTES = 3 * 4


@dataclass(frozen=True)
class ColumnPlan:
    """Blocks above each other.

    Attributes:
        y: first row.
        x: first voxel of the rows.
        starts: first sections, ascending.
    """

    y: int
    x: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class RunPlan:
    """How a region becomes affinities.

    The region is cut into tiles of whole output chunks, one after the other, each computed on its own: blocks that
    reach into two tiles are computed twice, and in turn memory is bounded and tiles can be shared. Within a tile,
    blocks come column by column, z fastest, so that the sections of a column are encoded once; columns come row by
    row, x before y. The sums of a chunk live from its first block to its last. A voxel's blocks come in the same order
    whatever the tiles and the region, so that sums of floating-point numbers are the same bits.

    A region's affinities are those that a run over the whole volume gives there, whatever the tiles.

    Attributes:
        grid: of the blocks of the whole volume.
        region: what is computed.
        chunk: (z, y, x) voxels of an output chunk; chunks begin at the region's first voxel.
        tile: (z, y, x) voxels of a tile, whole chunks.
        blending: how overlapping blocks are weighed.
    """

    grid: PatchGrid
    region: Box
    chunk: Triple
    tile: Triple
    blending: WeightKind = "gaussian"

    @cached_property
    def chunk_counts(self) -> Triple:
        """Chunks of the region along each axis."""
        return _ceil(self.region.shape, self.chunk)

    @cached_property
    def tiles(self) -> tuple[Box, ...]:
        """The tiles (boxes in the volume), z slowest."""
        return tuple(_pieces(self.region, self.tile))

    def tile_box(self, number: int) -> Box:
        """The voxels of a tile, in the volume; tiles are numbered with z slowest."""
        _, rows, columns = _ceil(self.region.shape, self.tile)
        place = (number // (rows * columns), number // columns % rows, number % columns)
        start = [a + i * n for a, i, n in zip(self.region.start, place, self.tile, strict=True)]
        return Box.from_shape(self.tile).shift(start).intersect(self.region)

    def chunk_box(self, index: Triple) -> Box:
        """The voxels of a chunk, in the volume."""
        start = [a + i * n for a, i, n in zip(self.region.start, index, self.chunk, strict=True)]
        return Box.from_shape(self.chunk).shift(start).intersect(self.region)

    def chunks_of(self, box: Box) -> Iterator[Triple]:
        """Indices of the chunks that share a voxel with a box."""
        inside = box.intersect(self.region)
        if not inside.size:
            return
        ranges = (
            range((first - a) // n, (last - 1 - a) // n + 1)
            for first, last, a, n in zip(inside.start, inside.stop, self.region.start, self.chunk, strict=True)
        )
        yield from itertools.product(*ranges)

    def columns_of(self, tile: Box) -> Iterator[ColumnPlan]:
        """The columns of a tile in the order in which they are run."""
        levels, rows, columns = self.grid.covering(tile)
        z, y, x = self.grid.starts
        starts = tuple(z[i] for i in levels)
        yield from (ColumnPlan(y[j], x[k], starts) for j, k in itertools.product(rows, columns))

    def block(self, start: Sequence[int]) -> Box:
        """The block at a place, which may reach beyond a volume that is smaller than a block."""
        return Box.from_shape(self.grid.patch).shift(start)

    @cached_property
    def blocks(self) -> int:
        """Blocks that are run, those that two tiles share counted twice."""
        # Tiles are a grid of their own, so counts along the axes multiply.
        return math.prod(_blocks_along(self.grid, self.region, axis, self.tile[axis]) for axis in range(3))

    @cached_property
    def live_chunks(self) -> int:
        """Most chunks whose sums are held at a time; all layers of a chunk's column in a tile are counted."""
        layers = min(self.tile[0] // self.chunk[0], self.chunk_counts[0])
        return layers * _live_columns(self.grid, self.region, self.chunk, self.tile[1], self.tile[2])

    @cached_property
    def tile_count(self) -> int:
        """How many tiles there are."""
        return math.prod(_ceil(self.region.shape, self.tile))

    @property
    def sum_bytes(self) -> int:
        """Memory of the device for sums, at most."""
        return self.live_chunks * math.prod(self.chunk) * _SUM_BYTES

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, what follows from it included."""
        return {
            **self.grid.to_json(),
            "region": str(self.region),
            "chunk": list(self.chunk),
            "tile": list(self.tile),
            "blending": self.blending,
            "tiles": self.tile_count,
            "chunks": math.prod(self.chunk_counts),
            "blocks": self.blocks,
            "blocks_without_tiles": math.prod(len(axis) for axis in self.grid.covering(self.region)),
            "sum_bytes": self.sum_bytes,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunPlan:
        """The plan that `to_dict` described."""
        shape = as_triple(data["volume"], "volume")
        return cls(
            PatchGrid.from_json(data),
            parse_roi(data["region"], shape),
            as_triple(data["chunk"], "chunk"),
            as_triple(data["tile"], "tile"),
            data["blending"],
        )


def make_plan(
    shape: Triple,
    patch: Triple,
    *,
    stride: Triple | None = None,
    region: Box | None = None,
    chunk: Triple,
    memory: int = DEFAULT_MEMORY,
    shares: int = 1,
    blending: WeightKind = "gaussian",
) -> RunPlan:
    """Plan a run: of all tiles whose sums fit into memory, those that repeat the least work.

    Args:
        shape: of the volume (z, y, x).
        patch: of the network (z, y, x).
        stride: voxels between blocks; half a patch by default.
        region: what is computed; everything by default.
        chunk: (z, y, x) voxels of an output chunk; clipped to the region.
        memory: bytes of the device for the sums of unfinished chunks.
        shares: processes that are to share the tiles; there are tiles for each of them, if there are enough chunks.
        blending: how overlapping blocks are weighed.

    Raises:
        GeometryError: a region that is empty or reaches outside the volume, a stride that leaves gaps, or too little
            memory for the smallest tile, with the figure.
    """
    whole = Box.from_shape(shape)
    box = region or whole
    if not box.size or not whole.contains(box):
        raise GeometryError(
            f"{box} is empty or reaches outside the volume of shape {shape}",
            where="region",
            remedy="give a box inside the volume",
        )
    grid = PatchGrid(shape, patch, stride or default_stride(patch))
    clipped = as_triple([min(pair) for pair in zip(chunk, box.shape, strict=True)], "chunk")
    counts = _ceil(box.shape, clipped)
    best: RunPlan | None = None
    least, most = 0, math.prod(counts)
    for plan in _candidates(grid, box, clipped, counts, blending, shared=shares > 1):
        # Shares are equal where there are as many tiles for each, and nearly so where there are many.
        tiles = plan.tile_count
        if tiles < min(shares, most) or (tiles % shares and tiles < min(4 * shares, most)):
            continue
        if best is not None and (plan.blocks, tiles) >= (best.blocks, best.tile_count):
            continue
        # Last, for it goes through all tiles.
        bytes_ = plan.sum_bytes
        least = min(least or bytes_, bytes_)
        if bytes_ <= memory:
            best = plan
    if best is None:
        raise GeometryError(
            f"the sums of unfinished chunks take {least / 2**30:.4f} GiB at least, and {memory / 2**30:.4f} GiB are"
            " allowed",
            where="--memory",
            remedy=f"allow {math.ceil(least / 2**30 * 1e4) / 1e4:.4f} GiB or more",
        )
    return best


def default_stride(patch: Triple) -> Triple:
    """Half the patch along each axis, so that each voxel is predicted eight times (the paper's 8 x 128 x 128)."""
    z, y, x = (max(side // 2, 1) for side in patch)
    return z, y, x


def _candidates(
    grid: PatchGrid, region: Box, chunk: Triple, counts: Triple, blending: WeightKind, *, shared: bool
) -> Iterator[RunPlan]:
    """Plans with every way to cut the region along z and x, and along y too, which saves no memory, to share it."""
    rows = _cuts(counts[1]) if shared else [counts[1]]
    for layers, height, width in itertools.product(_cuts(counts[0]), rows, _cuts(counts[2])):
        tile = (layers * chunk[0], height * chunk[1], width * chunk[2])
        yield RunPlan(grid, region, chunk, tile, blending)


def _cuts(count: int) -> list[int]:
    """Lengths of the longest piece when `count` chunks are cut into 1, 2, 3, ... pieces as equal as can be."""
    return sorted({math.ceil(count / pieces) for pieces in range(1, count + 1)}, reverse=True)


@cache
def _blocks_along(grid: PatchGrid, region: Box, axis: int, length: int) -> int:
    """Blocks that reach into the tiles along an axis, those that reach into two counted twice."""
    size = list(region.shape)
    size[axis] = length
    return sum(len(grid.covering(tile)[axis]) for tile in _pieces(region, as_triple(size, "tile")))


@cache
def _live_columns(grid: PatchGrid, region: Box, chunk: Triple, height: int, width: int) -> int:
    """Most columns of chunks, in the tiles of one layer, that are neither untouched nor finished at a time."""
    tiles = _pieces(region, (region.shape[0], height, width))
    return max(_live_columns_of(grid, tile, chunk) for tile in tiles)


def _live_columns_of(grid: PatchGrid, tile: Box, chunk: Triple) -> int:
    spans: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]] = []
    for axis in (1, 2):
        starts = np.array(grid.starts[axis])[list(grid.covering(tile)[axis])]
        begins = np.arange(tile.start[axis], tile.stop[axis], chunk[axis])
        ends = np.minimum(begins + chunk[axis], tile.stop[axis])
        earliest = np.searchsorted(starts, begins - grid.patch[axis], side="right")
        spans.append((earliest, np.searchsorted(starts, ends, side="left") - 1, len(starts)))
    (slow_first, slow_last, slow), (fast_first, fast_last, fast) = spans
    change = np.zeros(slow * fast + 1, np.int64)
    np.add.at(change, (slow_first[:, None] * fast + fast_first).ravel(), 1)
    np.add.at(change, (slow_last[:, None] * fast + fast_last).ravel() + 1, -1)
    return int(np.cumsum(change).max())


def _pieces(region: Box, size: Triple) -> Iterator[Box]:
    ranges = (range(a, b, n) for a, b, n in zip(region.start, region.stop, size, strict=True))
    for start in itertools.product(*ranges):
        yield Box.from_shape(size).shift(start).intersect(region)


def _ceil(shape: Triple, size: Triple) -> Triple:
    z, y, x = (-(-extent // step) for extent, step in zip(shape, size, strict=True))
    return z, y, x
