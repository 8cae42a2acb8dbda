"""Patches blended on an NVIDIA GPU: the kernels of blend.cu, bit for bit what `postproc.blending` computes."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_uint64
from importlib import resources
from typing import TYPE_CHECKING

from fgnet.engine.cuda_memory import Argument
from fgnet.engine.device import Buffer, Stream
from fgnet.postproc.blend_weights import BlendWeights, WeightTotals
from fgnet.volumes.geometry import Box, Triple

if TYPE_CHECKING:
    from fgnet.engine.cuda_device import CudaDevice

_FLOAT = 4
_THREADS = (32, 8, 1)
_MOST_BLOCKS = 65535  # of a grid, along y and z


class CudaBlender:
    """Blends on one GPU. Weights and totals are brought there once.

    Args:
        device: where the chunks' sums lie.
        weights: of the voxels of a patch.
        totals: of the grid of patches.

    Raises:
        BackendError: the kernels cannot be compiled, or the GPU has no memory for the weights.
    """

    def __init__(self, device: CudaDevice, weights: BlendWeights, totals: WeightTotals) -> None:
        self._device = device
        self._patch = Box.from_shape(weights.shape)
        self._weights_floor, self._totals_floor = weights.floor, totals.floor
        self._weights = [device.constant(axis) for axis in (weights.z, weights.y, weights.x)]
        self._totals = [device.constant(axis) for axis in (*totals.counts, *totals.factors)]
        self._accumulate, self._normalise = device.kernels(blending_source(), ("accumulate", "normalise"))

    def accumulate(self, sums: Buffer, box: Box, affinities: Buffer, start: Triple, stream: Stream) -> None:
        """Queue the addition of a patch (3, z, y, x) uint8, times its weights, to a chunk's sums."""
        region = box.intersect(self._patch.shift(start))
        if region.size == 0:
            return
        in_chunk = [at - lowest for at, lowest in zip(region.start, box.start, strict=True)]
        in_patch = [at - lowest for at, lowest in zip(region.start, start, strict=True)]
        factors = (axis.address + _FLOAT * at for axis, at in zip(self._weights, in_patch, strict=True))
        arguments: list[Argument] = [
            *_strided(sums, box.shape, in_chunk),
            *_strided(affinities, self._patch.shape, in_patch),
            *map(c_uint64, factors),
            c_float(self._weights_floor),
            *map(c_int32, region.shape),
        ]
        self._device.call(
            stream, lambda: self._device.launch(self._accumulate, *_grid(region.shape), arguments, stream), "blend"
        )

    def normalise(self, sums: Buffer, box: Box, target: Buffer, stream: Stream) -> None:
        """Queue the division by the weights into `target` (3, z, y, x) uint8; sums become 0 again."""
        if box.size == 0:
            return
        first = (*box.start, *box.start)
        factors = (axis.address + _FLOAT * at for axis, at in zip(self._totals, first, strict=True))
        arguments: list[Argument] = [
            c_uint64(sums.address),
            c_uint64(target.address),
            *map(c_uint64, factors),
            c_float(self._totals_floor),
            *map(c_int32, box.shape),
        ]
        self._device.call(
            stream, lambda: self._device.launch(self._normalise, *_grid(box.shape), arguments, stream), "normalise"
        )


def blending_source() -> str:
    """The CUDA C of the kernels."""
    return resources.files("fgnet.engine").joinpath("blend.cu").read_text()


def _strided(buffer: Buffer, shape: Triple, at: Sequence[int]) -> tuple[Argument, ...]:
    """The address of a voxel of the first channel of a dense (3, *shape), and the distances between its axes."""
    _, rows, columns = shape
    section = rows * columns
    offset = at[0] * section + at[1] * columns + at[2]
    return (
        c_uint64(buffer.address + offset * buffer.dtype.itemsize),
        c_int64(shape[0] * section),
        c_int64(section),
        c_int32(columns),
    )


def _grid(shape: Triple) -> tuple[Triple, Triple]:
    """Blocks and threads of a block, each along x, y and z, for a thread a voxel."""
    depth, rows, columns = shape
    return (-(-columns // _THREADS[0]), -(-rows // _THREADS[1]), min(depth, _MOST_BLOCKS)), _THREADS
