"""Where the patches of a volume lie: pure geometry, axes (z, y, x), in voxels."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import AXES, Box, Triple, as_triple


@dataclass(frozen=True)
class PatchGrid:
    """Blocks of one shape that cover a volume.

    The grid is anchored at 0 with the given stride; the last block of an axis is anchored at the far border, so that
    blocks see real context and never a mirror inside the volume. An axis shorter than the patch holds one block at 0,
    whose missing voxels are to be mirrored (`mirror_pad`).

    Args:
        volume: shape of the volume.
        patch: shape of every block.
        stride: distance between neighbouring blocks, 1 <= stride <= patch.

    Raises:
        GeometryError: an extent below 1, or a stride that is below 1 or leaves gaps.
    """

    volume: Triple
    patch: Triple
    stride: Triple

    def __post_init__(self) -> None:
        for name in ("volume", "patch", "stride"):
            object.__setattr__(self, name, as_triple(getattr(self, name), name))
        for axis, extent, patch, stride in zip(AXES, self.volume, self.patch, self.stride, strict=True):
            if extent < 1 or patch < 1:
                raise GeometryError(
                    f"volume {self.volume} and patch {self.patch} need at least 1 voxel per axis", where=f"axis {axis}"
                )
            if stride < 1:
                raise GeometryError(
                    f"stride {stride} does not advance", where=f"axis {axis}", remedy=f"choose 1 to {patch}"
                )
            if stride > patch:
                raise GeometryError(
                    f"stride {stride} is larger than the patch {patch} and would leave voxels uncovered",
                    where=f"axis {axis}",
                    remedy=f"choose a stride of at most {patch}, or a larger patch",
                )

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """First voxel of the blocks along each axis, ascending."""
        z, y, x = (
            _axis_starts(extent, patch, stride)
            for extent, patch, stride in zip(self.volume, self.patch, self.stride, strict=True)
        )
        return z, y, x

    @property
    def counts(self) -> Triple:
        """Number of blocks along each axis."""
        z, y, x = (len(starts) for starts in self.starts)
        return z, y, x

    @property
    def padded(self) -> Triple:
        """Shape of the volume once every axis has at least the patch's extent; the blocks lie inside it."""
        z, y, x = (max(pair) for pair in zip(self.volume, self.patch, strict=True))
        return z, y, x

    @property
    def output_voxels(self) -> int:
        """Voxels of the volume: what a run delivers, whatever the overlap."""
        return math.prod(self.volume)

    @property
    def patch_voxels(self) -> int:
        """Voxels of all blocks together: what a run computes."""
        return len(self) * math.prod(self.patch)

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Box]:
        """Boxes of the blocks, z slowest and x fastest."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Box:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of a grid of {len(self)}")
        _, rows, columns = self.counts
        position = (index // (rows * columns), index // columns % rows, index % columns)
        start = as_triple([starts[i] for starts, i in zip(self.starts, position, strict=True)], "start")
        return Box(start, as_triple([a + b for a, b in zip(start, self.patch, strict=True)], "stop"))

    def covering(self, box: Box) -> tuple[range, range, range]:
        """Indices into `starts`, per axis, of the blocks that share a voxel with a box."""
        z, y, x = (
            range(bisect.bisect_right(starts, first - patch), bisect.bisect_left(starts, last))
            for starts, patch, first, last in zip(self.starts, self.patch, box.start, box.stop, strict=True)
        )
        return z, y, x

    def to_json(self) -> dict[str, list[int]]:
        """The grid as plain lists, for a manifest or a plan."""
        return {"volume": list(self.volume), "patch": list(self.patch), "stride": list(self.stride)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PatchGrid:
        """The grid that `to_json` described.

        Raises:
            GeometryError: an entry is missing or makes no sense.
        """
        try:
            volume, patch, stride = (as_triple(data[name], name) for name in ("volume", "patch", "stride"))
        except KeyError as error:
            raise GeometryError(f"a patch grid needs an entry {error}", where=dict(data)) from error
        return cls(volume, patch, stride)


def _axis_starts(extent: int, patch: int, stride: int) -> tuple[int, ...]:
    last = max(extent - patch, 0)
    return (*range(0, last, stride), last)


def mirror_pad(block: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Enlarges the last three axes at their far end by reflection about the last voxel.

    An axis too short for one reflection is reflected back and forth; an axis of one voxel is repeated.

    Args:
        block: array (..., z, y, x) of any dtype.
        shape: extents (z, y, x) to reach; the block itself comes back where it has them already.

    Raises:
        GeometryError: the block has fewer than three axes, an empty axis, or one longer than asked.
    """
    target = as_triple(shape, "shape")
    if block.ndim < len(AXES) or 0 in block.shape:
        raise GeometryError(f"cannot mirror a block of shape {block.shape}", remedy="pass a filled (..., z, y, x)")
    missing = [wanted - extent for wanted, extent in zip(target, block.shape[-3:], strict=True)]
    if min(missing) < 0:
        raise GeometryError(f"block {block.shape[-3:]} is larger than {target}, mirroring only enlarges")
    for axis, amount in zip((-3, -2, -1), missing, strict=True):
        if amount:
            widths = [(0, 0)] * block.ndim
            widths[axis] = (0, amount)
            block = np.pad(block, widths, mode="edge" if block.shape[axis] == 1 else "reflect")
    return block
