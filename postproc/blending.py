"""How do the predictions of overlapping patches become one volume of affinities?

Chunk by chunk: the patches that reach into a chunk are added, times their weights, to its sums, and once the last one
is in, the sums are divided by what the weights come to. The kernels are serial and release the interpreter's lock. A
voxel is summed in the order of the calls, whatever chunk it is part of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blend_kernels import accumulate, accumulate_half, normalise
from fgnet.postproc.blend_weights import BlendWeights, WeightKind, WeightTotals, make_weights
from fgnet.volumes.errors import DecodingError, VolumeError
from fgnet.volumes.geometry import Box

__all__ = ["BlendWeights", "WeightKind", "WeightTotals", "add_patch", "finish_chunk", "make_weights"]


def add_patch(
    sums: npt.NDArray[np.float32], box: Box, patch: npt.NDArray[Any], start: Sequence[int], weights: BlendWeights
) -> None:
    """Add the prediction of one patch to a chunk's sums.

    Args:
        sums: (channel, z, y, x) float32 in units of 1/255, so that 8-bit predictions add up without rounding under
            constant weights; changed in place.
        box: the chunk's, in voxels of the volume.
        patch: (channel, z, y, x) affinities of the shape of the weights: uint8 (255 is 1.0), float16, or uint16,
            which is read as the bits of float16, or float32.
        start: first voxel (z, y, x) of the patch in the volume; what lies outside the box is left out.
        weights: of the voxels of a patch.

    Raises:
        VolumeError: if the patch has another shape or dtype, or the sums another shape than the box.
    """
    _require_shape(sums, box)
    expected = (sums.shape[0], *weights.shape)
    if patch.shape != expected:
        raise VolumeError(f"the patch has shape {patch.shape}, not {expected}", where=f"patch at {tuple(start)}")
    kernel, scale = _kernel_for(patch.dtype, start)
    if patch.dtype == np.float16:
        patch = patch.view(np.uint16)
    # Per axis: the first and one past the last voxel of the patch that lies in the box, and its place there.
    first = [max(0, lowest - at) for at, lowest in zip(start, box.start, strict=True)]
    stop = [min(n, end - at) for at, n, end in zip(start, weights.shape, box.stop, strict=True)]
    if any(begin >= end for begin, end in zip(first, stop, strict=True)):
        return
    shift = [at - lowest for at, lowest in zip(start, box.start, strict=True)]
    region = (first[0], stop[0], first[1], stop[1], first[2], stop[2], shift[0], shift[1], shift[2])
    axes = (np.float32(weights.floor), weights.z, weights.y, weights.x)
    kernel(sums, np.ascontiguousarray(patch), np.float32(scale), *axes, *region)


def finish_chunk(
    sums: npt.NDArray[np.float32], box: Box, totals: WeightTotals, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Divide by the weights and round to the nearest of 0 .. 255 (halves up), in one pass; the sums become 0.

    Args:
        sums: (channel, z, y, x) float32 of a chunk to which every patch that reaches into it was added.
        box: the chunk's, in voxels of the volume.
        totals: of the grid of patches.
        out: (channel, z, y, x) uint8 to write into, contiguous; a new array by default.

    Returns:
        (channel, z, y, x) uint8 affinities, 255 is 1.0.

    Raises:
        DecodingError: if a blended value is NaN or far outside of [0, 1].
        VolumeError: if the sums or `out` have another shape than the box, or `out` another dtype or layout.
    """
    _require_shape(sums, box)
    if out is not None and (out.shape != sums.shape or out.dtype != np.uint8 or not out.flags.c_contiguous):
        raise VolumeError(
            f"the output has shape {out.shape} and dtype {out.dtype}",
            where=f"box {box}",
            remedy=f"give contiguous uint8 of shape {sums.shape}",
        )
    affinities = np.empty(sums.shape, np.uint8) if out is None else out
    counts = (axis[part] for axis, part in zip(totals.counts, box.slices, strict=True))
    factors = (axis[part] for axis, part in zip(totals.factors, box.slices, strict=True))
    strange = normalise(sums, affinities, np.float32(totals.floor), *counts, *factors)
    if strange:
        raise DecodingError(
            f"{strange} blended affinities are NaN or lie outside of [0, 1]",
            where=f"box {box}",
            remedy="the network overflowed or its sigmoid is missing: run it at a higher precision",
        )
    return affinities


def _require_shape(sums: npt.NDArray[np.float32], box: Box) -> None:
    """The kernels do not look where they write."""
    if sums.shape[1:] != box.shape:
        raise VolumeError(f"the sums have shape {sums.shape}", where=f"box {box}")


def _kernel_for(dtype: np.dtype[Any], start: Sequence[int]) -> tuple[Callable[..., None], float]:
    """The kernel that reads this dtype, and the factor that brings its values to units of 1/255."""
    if dtype == np.uint8:
        return accumulate, 1.0
    if dtype == np.float32:
        return accumulate, 255.0
    if dtype in (np.float16, np.uint16):
        return accumulate_half, 255.0
    raise VolumeError(
        f"the patch has dtype {dtype}",
        where=f"patch at {tuple(start)}",
        remedy="give uint8, float16 (or its bits as uint16) or float32",
    )
