"""Which voxels are meant: half-open boxes in a volume, and the texts that name them. Axes are (z, y, x), in voxels."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from fgnet.volumes.errors import GeometryError

Triple = tuple[int, int, int]

AXES = "zyx"


def as_triple(values: Sequence[int], name: str) -> Triple:
    """Turns three whole numbers (z, y, x) of any integer type into plain ints.

    Raises:
        GeometryError: there are not three of them, or one is no whole number.
    """
    try:
        z, y, x = (operator.index(value) for value in values)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"{name} must be three whole numbers (z, y, x), got {values!r}") from error
    return z, y, x


@dataclass(frozen=True)
class Box:
    """The voxels start <= p < stop, per axis (z, y, x).

    A box is not tied to a volume: it may begin below 0 (a halo) and may hold no voxel (two disjoint boxes intersected).

    Args:
        start: first voxel of each axis.
        stop: one past the last voxel of each axis.

    Raises:
        GeometryError: an axis stops before it starts, or a bound is no whole number.
    """

    start: Triple
    stop: Triple

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", as_triple(self.start, "start"))
        object.__setattr__(self, "stop", as_triple(self.stop, "stop"))
        for axis, start, stop in zip(AXES, self.start, self.stop, strict=True):
            if stop < start:
                raise GeometryError(f"axis {axis} stops at {stop}, before it starts at {start}", where="box")

    def __str__(self) -> str:
        return ",".join(f"{start}:{stop}" for start, stop in zip(self.start, self.stop, strict=True))

    @classmethod
    def from_shape(cls, shape: Sequence[int]) -> Box:
        """The box of a whole volume of this shape (z, y, x)."""
        return cls((0, 0, 0), as_triple(shape, "shape"))

    @property
    def shape(self) -> Triple:
        """Extent of each axis in voxels."""
        z, y, x = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that index the last three axes of an array; only sensible for a box that begins at 0 or later."""
        z, y, x = (slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    def intersect(self, other: Box) -> Box:
        """The voxels in both boxes; a box of size 0 where they share none."""
        start = as_triple([max(pair) for pair in zip(self.start, other.start, strict=True)], "start")
        stop = [min(pair) for pair in zip(self.stop, other.stop, strict=True)]
        return Box(start, as_triple([max(pair) for pair in zip(start, stop, strict=True)], "stop"))

    def contains(self, other: Box) -> bool:
        """Whether every voxel of the other box lies in this one."""
        return other.size == 0 or self.intersect(other) == other

    def shift(self, by: Sequence[int]) -> Box:
        """The same box moved by (z, y, x) voxels."""
        step = as_triple(by, "shift")
        start = as_triple([a + b for a, b in zip(self.start, step, strict=True)], "start")
        return Box(start, as_triple([a + b for a, b in zip(self.stop, step, strict=True)], "stop"))

    def grow(self, halo: Sequence[int]) -> Box:
        """The box with a halo of (z, y, x) voxels on both sides of each axis; it may begin below 0."""
        margin = as_triple(halo, "halo")
        start = as_triple([a - b for a, b in zip(self.start, margin, strict=True)], "start")
        return Box(start, as_triple([a + b for a, b in zip(self.stop, margin, strict=True)], "stop"))


def parse_roi(text: str, shape: Triple) -> Box:
    """Reads a region of interest "z0:z1,y0:y1,x0:x1" of a volume; a bound left out means the border.

    Args:
        text: for example "0:64,:,128:".
        shape: the volume's shape (z, y, x).

    Raises:
        GeometryError: malformed text, a negative bound, an empty axis, or a bound outside the volume.
    """
    parts = text.split(",")
    if len(parts) != len(AXES):
        raise GeometryError(
            f"a region needs three ranges, {text!r} has {len(parts)}",
            where="region of interest",
            remedy='write "z0:z1,y0:y1,x0:x1"; a bound left out means the border',
        )
    bounds = [_parse_range(part, axis, extent) for part, axis, extent in zip(parts, AXES, shape, strict=True)]
    return Box(as_triple([b[0] for b in bounds], "start"), as_triple([b[1] for b in bounds], "stop"))


def _parse_range(text: str, axis: str, extent: int) -> tuple[int, int]:
    where = f"region of interest, axis {axis}"
    remedy = f"the volume has voxels 0:{extent} along {axis}"
    first, colon, last = (part.strip() for part in text.partition(":"))
    if not colon:
        raise GeometryError(f"{text!r} is no range", where=where, remedy=f'write "start:stop"; {remedy}')
    try:
        start = int(first) if first else 0
        stop = int(last) if last else extent
    except ValueError as error:
        raise GeometryError(f"{text!r} is no range of whole numbers", where=where, remedy=remedy) from error
    for value in (start, stop):
        if not 0 <= value <= extent:
            raise GeometryError(f"{value} lies outside the volume", where=where, remedy=remedy)
    if stop <= start:
        raise GeometryError(f"{start}:{stop} holds no voxel", where=where, remedy=remedy)
    return start, stop


def parse_triple(text: str, name: str) -> Triple:
    """Reads "z,y,x" as three positive whole numbers, for example the patch "8,128,128".

    Raises:
        GeometryError: not three whole numbers, or one below 1.
    """
    try:
        values = as_triple([int(part) for part in text.split(",")], name)
    except (ValueError, GeometryError) as error:
        raise GeometryError(
            f"{text!r} is not three whole numbers", where=name, remedy='write "z,y,x", for example "8,128,128"'
        ) from error
    if min(values) < 1:
        raise GeometryError(f"{text!r} holds a number below 1", where=name, remedy="every axis needs at least 1 voxel")
    return values
