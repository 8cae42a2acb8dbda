"""How do the predictions of overlapping patches become one volume of affinities?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blend_kernels import accumulate, accumulate_half, add_weights, normalise
from fgnet.postproc.blend_weights import BlendWeights, WeightKind, make_weights
from fgnet.volumes.errors import DecodingError, VolumeError
from fgnet.volumes.geometry import Box

__all__ = ["BlendAccumulator", "BlendWeights", "WeightKind", "make_weights"]


class BlendAccumulator:
    """The weighted sum of the patches that fall into a box, and the sum of their weights.

    The kernels are serial and release the interpreter's lock; with threads > 1, the accumulator splits each patch into
    slabs of sections for threads of its own. Numba's parallel kernels would do the same, but abort the process when
    two threads enter them at once. Accumulators are independent of each other; one accumulator takes one call at a
    time. Every voxel is summed by one thread in the order of the calls: the result does not depend on threads.

    Args:
        channels: number of affinity channels.
        box: the region to fill, in voxels of the volume; patches may stick out of it and are clipped.
        weights: the weight of each voxel of a patch (see `blend_weights.make_weights`).
        threads: threads per call.
    """

    def __init__(self, channels: int, box: Box, weights: BlendWeights, *, threads: int = 1) -> None:
        self.channels = channels
        self.box = box
        self.weights = weights
        # In units of 1/255, so that 8-bit predictions add up without rounding under constant weights.
        self._sums = np.zeros((channels, *box.shape), np.float32)
        self._weight_sums = np.zeros(box.shape, np.float32)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="blend") if threads > 1 else None
        self._threads = threads

    def add(self, patch: npt.NDArray[Any], start: Sequence[int]) -> None:
        """Add the prediction of one patch.

        Args:
            patch: (channel, z, y, x) affinities of the shape of the weights: uint8 (255 is 1.0), float16, or uint16,
                which is read as the bits of float16, or float32.
            start: first voxel (z, y, x) of the patch in the volume; may lie outside the box.

        Raises:
            VolumeError: if the patch has another shape or dtype.
        """
        expected = (self.channels, *self.weights.shape)
        if patch.shape != expected:
            raise VolumeError(f"the patch has shape {patch.shape}, not {expected}", where=f"patch at {tuple(start)}")
        kernel, scale = _kernel_for(patch.dtype, start)
        if patch.dtype == np.float16:
            patch = patch.view(np.uint16)
        patch = np.ascontiguousarray(patch)
        # Per axis: the first and one past the last voxel of the patch that lies in the box, and its place there.
        first = [max(0, lowest - at) for at, lowest in zip(start, self.box.start, strict=True)]
        stop = [min(n, end - at) for at, n, end in zip(start, self.weights.shape, self.box.stop, strict=True)]
        if any(begin >= end for begin, end in zip(first, stop, strict=True)):
            return
        shift = [at - lowest for at, lowest in zip(start, self.box.start, strict=True)]
        weights = self.weights

        def add_slab(begin: int, end: int) -> None:
            region = (begin, end, first[1], stop[1], first[2], stop[2], shift[0], shift[1], shift[2])
            axes = (np.float32(weights.floor), weights.z, weights.y, weights.x)
            add_weights(self._weight_sums, *axes, *region)
            kernel(self._sums, patch, np.float32(scale), *axes, *region)

        self._in_slabs(add_slab, first[0], stop[0])

    def finish(self, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Divide by the weights and round to the nearest of 0 .. 255 (halves up), in one pass.

        Args:
            out: (channel, z, y, x) uint8 to write into, contiguous; a new array by default.

        Returns:
            (channel, z, y, x) uint8 affinities, 255 is 1.0. Voxels that no patch covered are 0.

        Raises:
            DecodingError: if a blended value is NaN or far outside of [0, 1].
            VolumeError: if out has another shape, dtype or layout.
        """
        if out is None:
            out = np.empty(self._sums.shape, np.uint8)
        elif out.shape != self._sums.shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise VolumeError(
                f"the output has shape {out.shape} and dtype {out.dtype}",
                remedy=f"give contiguous uint8 of shape {self._sums.shape}",
            )
        strange: list[int] = []
        affinities = out

        def finish_slab(begin: int, end: int) -> None:
            strange.append(normalise(self._sums, self._weight_sums, affinities, begin, end))

        self._in_slabs(finish_slab, 0, self.box.shape[0])
        if any(strange):
            raise DecodingError(
                f"{sum(strange)} blended affinities are NaN or lie outside of [0, 1]",
                where=f"box {self.box}",
                remedy="the network overflowed or its sigmoid is missing: run it at a higher precision",
            )
        return out

    def clear(self, box: Box | None = None) -> None:
        """Start anew, in the same memory, for this box or for another of the same shape.

        Raises:
            VolumeError: if the box has another shape.
        """
        if box is not None:
            if box.shape != self.box.shape:
                raise VolumeError(f"box {box} has shape {box.shape}, the accumulator {self.box.shape}")
            self.box = box
        self._sums.fill(0)
        self._weight_sums.fill(0)

    def _in_slabs(self, work: Callable[[int, int], None], first: int, stop: int) -> None:
        if self._pool is None:
            work(first, stop)
            return
        cuts = np.linspace(first, stop, min(self._threads, stop - first) + 1).astype(int).tolist()
        for _ in self._pool.map(work, cuts[:-1], cuts[1:]):
            pass


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
