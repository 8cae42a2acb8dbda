"""Which voxels flow together along the highest affinities?

Each voxel points to the neighbour, of six, to which its affinity is highest. Where several are equally high, it may lie
on a plateau, whose voxels point at each other; a plateau is divided by the distance to its nearest exit. With a limit
on that distance, what becomes of a voxel depends on nothing farther away than the limit and a few voxels: blocks with
a halo that wide give what the whole volume gives. Without one, fragments are those of waterz, number by number.

Or fragments are made section by section, flooded from the middles of processes. This is what
`fragments.section_fragments` does, but tile by tile, each with a margin of its surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fgnet.postproc.affinity_values import require_affinities
from fgnet.postproc.section_kernels import flood_directions, margin
from fgnet.postproc.tissue import links_within, require_tissue
from fgnet.postproc.watershed_kernels import (
    divide_plateaus,
    divide_plateaus_in_order,
    label_basins,
    steepest_directions,
)
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box, Triple, as_triple

MOST_PLATEAU_STEPS = 1000
"""The widest plateau that a block can be asked to divide, in steps; its halo is wider still."""

MOST_RADIUS = 1000
"""The widest process, in voxels to its boundary, whose middle a block can be asked to find."""

MOST_TILE = 1 << 14
"""Voxels along y and x; what is flooded at once takes 21 bytes a voxel."""

Flow = Literal["affinity", "sections"]


@dataclass(frozen=True)
class WatershedOptions:
    """Which affinities are followed, and how far over a plateau.

    Attributes:
        plateau_steps: plateau voxels with an exit at most this many steps away are led to it, the others stay
            together as roots. None leads all of them, as waterz does, which only the whole volume can tell.
        aff_threshold_low: 0 .. 254; affinities up to and including it are never followed. A voxel without a higher one
            is background. 0 is what waterz's default of 0.0001 means for uint8.
        aff_threshold_high: 1 .. 255; affinities from here on are always followed, also where another one is higher.
            255 is what waterz's default of 0.9999 means for uint8.
        flow: "affinity" follows the highest of the six affinities; "sections" flows to the middles of the processes of
            a section, its regional maxima of the distance to boundaries (where the mean of both affinities is at most
            0.5), as flooding from all of them leads. The limit on plateaus and the thresholds do not count then.
        radius: with sections, voxels; what is farther from every boundary is all middle, and a boundary is flooded only
            where a process is fewer steps away.
        tile: with sections, voxels along y and x that are flooded at once, within a margin; the first tile begins where
            the volume does.

    Raises:
        DecodingError: if a value is out of range, or low is not below high.
    """

    plateau_steps: int | None = 8
    aff_threshold_low: int = 0
    aff_threshold_high: int = 255
    flow: Flow = "affinity"
    radius: int = 16
    tile: int = 256

    def __post_init__(self) -> None:
        if self.plateau_steps is not None and not 0 <= self.plateau_steps <= MOST_PLATEAU_STEPS:
            raise DecodingError(
                f"it is {self.plateau_steps}",
                where="plateau_steps",
                remedy=f"choose 0 to {MOST_PLATEAU_STEPS}, or None for no limit",
            )
        if not 0 <= self.aff_threshold_low < self.aff_threshold_high <= 255:
            raise DecodingError(
                f"aff_threshold_low is {self.aff_threshold_low}, aff_threshold_high {self.aff_threshold_high}",
                remedy="choose 0 <= low < high <= 255, in units of uint8",
            )
        if self.flow not in ("affinity", "sections"):
            raise DecodingError(f"it is {self.flow!r}", where="flow", remedy="affinity or sections")
        if not 1 <= self.radius <= MOST_RADIUS:
            raise DecodingError(f"it is {self.radius}", where="radius", remedy=f"choose 1 to {MOST_RADIUS} voxels")
        if not 1 <= self.tile <= MOST_TILE:
            raise DecodingError(f"it is {self.tile}", where="tile", remedy=f"choose 1 to {MOST_TILE} voxels")

    @property
    def halo(self) -> Triple:
        """Voxels (z, y, x) around a block, or with sections around its tiles, on which its directions depend.

        The outermost voxel does not know all its affinities (1); whether the next one points back is known one further
        in (2); each step over a plateau adds one, and the cut beyond the last one (steps + 3).

        Raises:
            DecodingError: if there is no limit on plateaus.
        """
        if self.flow == "sections":
            around = int(margin(self.radius))
            return 0, around, around
        if self.plateau_steps is None:
            raise DecodingError("plateaus without a limit need the whole volume", where="plateau_steps")
        steps = self.plateau_steps + 3
        return steps, steps, steps

    def region(self, box: Box) -> Box:
        """The voxels on which the directions of a box depend; they may lie outside of the volume.

        Raises:
            DecodingError: if there is no limit on plateaus.
        """
        if self.flow == "affinity":
            return box.grow(self.halo)
        start = (box.start[0], *(first // self.tile * self.tile for first in box.start[1:]))
        stop = (box.stop[0], *(-(-last // self.tile) * self.tile for last in box.stop[1:]))
        return Box(as_triple(start, "start"), as_triple(stop, "stop")).grow(self.halo)


def require_uint8(affinities: npt.NDArray[Any]) -> None:
    """Check that affinities are what the exact decoder sums: whole numbers.

    Raises:
        DecodingError: if the shape is not (3, z, y, x), the values are no affinities, or the dtype is not uint8.
    """
    require_affinities(affinities)
    if affinities.dtype != np.uint8:
        raise DecodingError(
            f"affinities have dtype {affinities.dtype}",
            remedy="round them to uint8, 255 is 1.0: sums of floats depend on their order",
        )


def basin_directions(
    affinities: npt.NDArray[np.uint8],
    options: WatershedOptions,
    *,
    region: Box | None = None,
    core: Box | None = None,
    tissue: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.uint8]:
    """Point every voxel where it flows.

    Args:
        affinities: (3, z, y, x) uint8. Those that lead out of the array are not read.
        options: which affinities are followed.
        region: the voxels of the volume whose affinities these are; by default they are the whole volume.
        core: the voxels, in those of the region, whose directions are wanted; by default all. They are those of the
            whole volume if the region holds `options.region(core)`, as far as that lies in the volume.
        tissue: (z, y, x) bool of the region, True in tissue; what is none is background, and nothing flows there or
            through it. None for everywhere.

    Returns:
        uint8 of the core; bits 1, 2, 4 point to the neighbour before along z, y, x; 8, 16, 32 to the one after. 64
        alone marks a voxel that flows nowhere; 0 is background.

    Raises:
        DecodingError: if affinities or tissue are not as described.
    """
    require_uint8(affinities)
    if tissue is not None:
        require_tissue(tissue, affinities)
    shape = affinities.shape[1:]
    region = region or Box.from_shape(shape)
    core = (core or region).shift([-first for first in region.start])
    if options.flow == "sections":
        (_, top, left), (_, bottom, right) = core.start, core.stop
        sections, everywhere = affinities[:, core.slices[0]], np.empty((core.shape[0], 0, 0), np.bool_)
        masked = everywhere if tissue is None else tissue[core.slices[0]]
        if tissue is not None:
            sections = sections * masked
        found = np.empty(core.shape, np.uint8)
        edges, origin = (top, left, bottom, right), region.start[1:]
        flood_directions(sections, masked, options.radius, options.tile, origin, edges, found)
        return found
    if tissue is not None:
        affinities = links_within(affinities, tissue)
    directions = np.empty(shape, np.uint8)
    low, high = np.uint8(options.aff_threshold_low), np.uint8(options.aff_threshold_high)
    steepest_directions(affinities, low, high, directions)
    if options.plateau_steps is None:
        divide_plateaus_in_order(directions.reshape(-1), shape[1], shape[2])
        return directions[core.slices]
    divided = directions.copy()
    divide_plateaus(directions.reshape(-1), divided.reshape(-1), shape[1], shape[2], options.plateau_steps)
    return divided[core.slices]


def basins(directions: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint32], int]:
    """Number the fragments of a box: what its directions connect within it.

    Args:
        directions: (z, y, x) uint8 from `basin_directions`; any view of it.

    Returns:
        (z, y, x) uint32 with ids 1, 2, ... in the order of first voxels, 0 is background; and their number.

    Raises:
        DecodingError: if the box holds 2^32 voxels or more.
    """
    if directions.size >= 2**32:
        raise DecodingError(f"a box of {directions.shape} has too many voxels", remedy="choose smaller blocks")
    labels = np.empty(directions.shape, np.uint32)
    return labels, int(label_basins(directions, labels))


def leads_out(directions: npt.NDArray[np.uint8], axis: int, *, after: bool) -> npt.NDArray[np.bool_]:
    """Tell which voxels of an outer plane of a box flow out of it: they are one with the voxel there.

    Args:
        directions: (z, y, x) uint8 of the box.
        axis: 0, 1, 2 for z, y, x.
        after: of its last plane, to the voxel after it, instead of its first, to the one before.

    Returns:
        bool of the two other axes.
    """
    plane, bit = (-1, 8 << axis) if after else (0, 1 << axis)
    leading: npt.NDArray[np.bool_] = (np.take(directions, plane, axis) & bit) != 0
    return leading


def watershed(
    affinities: npt.NDArray[np.uint8], options: WatershedOptions | None = None
) -> tuple[npt.NDArray[np.uint32], int]:
    """Cut a volume into fragments, each the basin of a highest affinity.

    Time grows with the number of voxels, whatever the plateaus; memory is 7 bytes per voxel, up to 15 without a limit.

    Args:
        affinities: (3, z, y, x) uint8, 255 is 1.0.
        options: which affinities are followed; by default all but 0, and 8 steps over a plateau.

    Returns:
        (z, y, x) uint32 fragments, ids 1, 2, ... in the order of first voxels, 0 is background; and their number.

    Raises:
        DecodingError: if affinities are not as described.

    Source: Zlateski and Seung 2015, "Image segmentation by size-dependent single linkage clustering of a watershed
    basin graph".
    """
    directions = basin_directions(affinities, options or WatershedOptions())
    return basins(directions)
