"""Which voxels flow together along the highest affinities?

Each voxel points to the neighbour, of six, to which its affinity is highest. Where several are equally high, it may lie
on a plateau, whose voxels point at each other; a plateau is divided by the distance to its nearest exit. With a limit
on that distance, what becomes of a voxel depends on nothing farther away than the limit and a few voxels: blocks with
a halo that wide give what the whole volume gives. Without one, fragments are those of waterz, number by number.

Or fragments are made section by section: each voxel flows uphill, away from the boundaries of its section. This is
what `fragments.section_fragments` does, but for seeds: there a section is flooded from all its maxima in turn, which
only the whole section can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fgnet.postproc.affinity_values import require_affinities
from fgnet.postproc.section_kernels import uphill_directions
from fgnet.postproc.watershed_kernels import (
    divide_plateaus,
    divide_plateaus_in_order,
    label_basins,
    steepest_directions,
)
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box, Triple

MOST_PLATEAU_STEPS = 1000
"""The widest plateau that a block can be asked to divide, in steps; its halo is wider still."""

MOST_RADIUS = 1000
"""The widest process, in voxels to its boundary, whose middle a block can be asked to find."""

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
        flow: "affinity" follows the highest of the six affinities; "sections" flows away from the boundaries of the
            section (where the mean of both affinities is at most 0.5), and from those the best way into a process; the
            thresholds do not count then.
        radius: with sections, voxels; what is farther from every boundary is a plateau, and a way from a boundary into
            a process has fewer steps.

    Raises:
        DecodingError: if a value is out of range, low is not below high, or sections have no limit on plateaus.
    """

    plateau_steps: int | None = 8
    aff_threshold_low: int = 0
    aff_threshold_high: int = 255
    flow: Flow = "affinity"
    radius: int = 16

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
        if self.flow == "sections" and self.plateau_steps is None:
            raise DecodingError("sections need a limit on plateaus", where="plateau_steps", remedy="for example 8")

    @property
    def halo(self) -> Triple:
        """Voxels (z, y, x) around a block on which the directions of its own, and of those one before it, depend.

        The outermost voxel does not know all its affinities (1); whether the next one points back is known one further
        in (2); each step over a plateau and the cut beyond the last one add one (steps + 3); and a block also asks for
        the directions of the plane before it. In sections nothing flows along z, and heights depend on what is no
        farther than the radius.

        Raises:
            DecodingError: if there is no limit.
        """
        if self.plateau_steps is None:
            raise DecodingError("plateaus without a limit need the whole volume", where="plateau_steps")
        steps = self.plateau_steps + 4
        return (1, self.radius + steps, self.radius + steps) if self.flow == "sections" else (steps, steps, steps)


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


def basin_directions(affinities: npt.NDArray[np.uint8], options: WatershedOptions) -> npt.NDArray[np.uint8]:
    """Point every voxel where it flows.

    Args:
        affinities: (3, z, y, x) uint8. Those that lead out of the array are not read.
        options: which affinities are followed.

    Returns:
        (z, y, x) uint8; bits 1, 2, 4 point to the neighbour before along z, y, x; 8, 16, 32 to the one after. 64 alone
        marks a voxel that flows nowhere; 0 is background.

    Raises:
        DecodingError: if affinities are not as described.
    """
    require_uint8(affinities)
    shape = affinities.shape[1:]
    directions = np.empty(shape, np.uint8)
    if options.flow == "sections":
        uphill_directions(affinities, options.radius, directions)
    else:
        low, high = np.uint8(options.aff_threshold_low), np.uint8(options.aff_threshold_high)
        steepest_directions(affinities, low, high, directions)
    if options.plateau_steps is None:
        divide_plateaus_in_order(directions.reshape(-1), shape[1], shape[2])
        return directions
    divided = directions.copy()
    divide_plateaus(directions.reshape(-1), divided.reshape(-1), shape[1], shape[2], options.plateau_steps)
    return divided


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


def face_links(directions: npt.NDArray[np.uint8], core: Box, axis: int) -> npt.NDArray[np.bool_]:
    """Tell where a voxel of a box's first plane and the voxel before it, outside of the box, flow together.

    Args:
        directions: (z, y, x) uint8 of a region with at least one plane before the box.
        core: the box, in voxels of the region.
        axis: 0, 1, 2 for z, y, x.

    Returns:
        bool of the two other axes.
    """
    here, before = list(core.slices), list(core.slices)
    first = core.start[axis]
    here[axis], before[axis] = slice(first, first + 1), slice(first - 1, first)
    links = ((directions[tuple(here)] & (1 << axis)) | (directions[tuple(before)] & (8 << axis))) != 0
    joined: npt.NDArray[np.bool_] = np.squeeze(links, axis)
    return joined


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
