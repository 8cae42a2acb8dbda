"""The affinities of a region that fits into memory, as one array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fgnet.engine.gray_reader import ArraySource, GraySource
from fgnet.engine.run_plan import make_plan
from fgnet.engine.runner import Runner
from fgnet.engine.streaming import StreamOptions, StreamState, stream
from fgnet.postproc.blending import WeightKind
from fgnet.volumes.geometry import Box, Triple

__all__ = ["ArraySource", "GraySource", "predict_affinities"]

_CHUNK = (64, 128, 128)
# Sums of the whole region at once take six times what the result does: the plan is to keep to fewer.
_MEMORY = 2 << 30


def predict_affinities(
    source: GraySource,
    runner: Runner,
    *,
    box: Box | None = None,
    stride: Triple | None = None,
    blending: WeightKind = "gaussian",
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Blended affinities of a region, by the pipeline that fgnet-run streams by.

    Args:
        source: gray values.
        runner: the network.
        box: the region to predict; everything by default.
        stride: voxels between patches (z, y, x); half a patch by default.
        blending: how overlapping patches are weighed.
        progress: called with the share of the region's voxels that the last patch finished, as a count of voxels.

    Returns:
        (3, z, y, x) uint8 of the region, 255 is 1.0.

    Raises:
        GeometryError: a region that is empty or reaches outside the volume, or a stride that leaves gaps.
        VolumeError: gray that cannot be read.
        BackendError: the network failed.
    """
    plan = make_plan(
        source.shape, runner.patch, stride=stride, region=box, chunk=_CHUNK, memory=_MEMORY, blending=blending
    )
    affinities = np.zeros((3, *plan.region.shape), np.uint8)
    told = 0

    def report(state: StreamState) -> None:
        nonlocal told
        done = plan.region.size * state.done // state.blocks
        if progress is not None:
            progress(done - told)
        told = done

    stream(plan, source, runner, _ArraySink(affinities, plan.region), StreamOptions(progress=report))
    return affinities


class _ArraySink:
    """Chunks side by side in memory."""

    def __init__(self, array: npt.NDArray[np.uint8], region: Box) -> None:
        self._array, self._offset = array, [-first for first in region.start]

    def write(self, _index: Triple, box: Box, affinities: npt.NDArray[np.uint8] | None) -> None:
        """Copy a chunk to its place."""
        self._array[(slice(None), *box.shift(self._offset).slices)] = 0 if affinities is None else affinities
