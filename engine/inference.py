"""From a volume of gray to its affinities: overlapping patches through a runner, blended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fgnet.engine.columns import Column
from fgnet.engine.runner import Runner
from fgnet.postproc.blending import BlendAccumulator, WeightKind, make_weights
from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.grid import PatchGrid, mirror_pad

CHANNELS = 3


class GraySource(Protocol):
    """Where patches come from: a volume's shape (z, y, x), and uint8 gray of any box inside it."""

    @property
    def shape(self) -> Triple:
        """Extent (z, y, x) in voxels."""
        ...

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        """The box's values; it lies inside the volume."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Gray (z, y, x) uint8 that is in memory already."""

    array: npt.NDArray[np.uint8]

    @property
    def shape(self) -> Triple:
        """Extent (z, y, x) in voxels."""
        z, y, x = self.array.shape
        return z, y, x

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        """The box as a view."""
        return self.array[box.slices]


@dataclass
class StageSeconds:
    """Seconds spent waiting for each stage of an inference."""

    read: float = 0.0
    infer: float = 0.0
    blend: float = 0.0
    _last: float = field(default_factory=time.perf_counter, repr=False)

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for a stage."""
        now = time.perf_counter()
        setattr(self, stage, getattr(self, stage) + now - self._last)
        self._last = now


def default_stride(patch: Triple) -> Triple:
    """Half the patch along each axis, so that each voxel is predicted eight times (the paper's 8 x 128 x 128)."""
    z, y, x = (max(side // 2, 1) for side in patch)
    return z, y, x


def predict_affinities(
    source: GraySource,
    runner: Runner,
    *,
    box: Box | None = None,
    stride: Triple | None = None,
    blending: WeightKind = "gaussian",
    progress: Callable[[int], None] | None = None,
    seconds: StageSeconds | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint8]:
    """Blended affinities of a region.

    The grid of patches is that of the whole volume: a region's affinities are those that a run over the whole volume
    gives there, with the same context. Blocks come column by column, so that a section's features serve every block
    that it lies in; the next block is read while the runner works on this one.

    Args:
        source: gray values.
        runner: the network.
        box: the region to predict; everything by default.
        stride: voxels between patches (z, y, x); half a patch by default.
        blending: how overlapping patches are weighed.
        progress: called with the share of the region's voxels that the last patch finished, as a count of voxels.
        seconds: stages are timed into it.
        threads: for blending.

    Returns:
        (3, z, y, x) uint8 of the region, 255 is 1.0.

    Raises:
        GeometryError: a region that is empty or reaches outside the volume, or a stride that leaves gaps.
        VolumeError: gray that cannot be read.
        DecodingError: affinities that are not finite or outside [0, 1].
    """
    region = box or Box.from_shape(source.shape)
    blocks = plan_blocks(source.shape, runner.patch, box=region, stride=stride)
    timer = seconds or StageSeconds()
    timer.lap("read")
    accumulator = BlendAccumulator(CHANNELS, region, make_weights(blending, runner.patch), threads=threads)
    told = 0
    column, place = Column(runner), blocks[0].start[1:]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader:
        ahead: Future[npt.NDArray[np.uint8]] = reader.submit(_read, source, blocks[0], runner)
        for index, block in enumerate(blocks):
            gray = ahead.result()
            if index + 1 < len(blocks):
                ahead = reader.submit(_read, source, blocks[index + 1], runner)
            timer.lap("read")
            if block.start[1:] != place:
                column, place = Column(runner), block.start[1:]
            affinities = column.affinities(block.start[0], gray)
            timer.lap("infer")
            accumulator.add(affinities, block.start)
            timer.lap("blend")
            if progress is not None:
                done = region.size * (index + 1) // len(blocks)
                progress(done - told)
                told = done
    result = accumulator.finish()
    timer.lap("blend")
    return result


def plan_blocks(shape: Triple, patch: Triple, *, box: Box | None = None, stride: Triple | None = None) -> list[Box]:
    """The blocks that a region's affinities are made of, in the order in which they are run.

    Args:
        shape: of the volume (z, y, x).
        patch: of the network (z, y, x).
        box: the region; everything by default.
        stride: voxels between patches; half a patch by default.

    Raises:
        GeometryError: a region that is empty or reaches outside the volume, or a stride that leaves gaps.
    """
    whole = Box.from_shape(shape)
    region = box or whole
    if not region.size or not whole.contains(region):
        raise GeometryError(
            f"{region} is empty or reaches outside the volume of shape {shape}",
            where="region",
            remedy="give a box inside the volume",
        )
    return list(blocks_of(PatchGrid(shape, patch, stride or default_stride(patch)), region))


def blocks_of(grid: PatchGrid, region: Box) -> Iterator[Box]:
    """The blocks of a grid that reach into a region, z fastest: column by column, so that sections are encoded once."""
    _, rows, columns = grid.counts
    levels, *plane = grid.covering(region)
    for (y, x), z in itertools.product(itertools.product(*plane), levels):
        yield grid[(z * rows + y) * columns + x]


def _read(source: GraySource, block: Box, runner: Runner) -> npt.NDArray[np.uint8]:
    """The gray of a block, mirrored where the volume is smaller."""
    whole = Box.from_shape(source.shape)
    return np.ascontiguousarray(mirror_pad(source.gray(block.intersect(whole)), runner.patch))
