"""The inner loops of flooding sections: serial, compiled, without the interpreter's lock.

Every voxel gets a height: inside of processes its distance to the nearest boundary of its section, above all of that;
on a boundary the affinities around it. Both depend on a neighbourhood of bounded radius alone.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.watershed_kernels import SETTLED

Array = npt.NDArray[Any]

INSIDE = 512
"""Height that every voxel inside of a process exceeds; boundaries lie below, at the sum of two uint8 affinities."""


@numba.njit(cache=True, nogil=True)
def _columns(along_y: Array, along_x: Array, radius: int, distance: Array) -> None:
    """Voxels (y) to the nearest boundary of the same column, at most `radius`; 0 on boundaries."""
    height, width = along_y.shape
    for y in range(height):
        for x in range(width):
            inside = np.int32(along_y[y, x]) + along_x[y, x] > 255
            above = distance[y - 1, x] if y > 0 else radius
            distance[y, x] = min(above + 1, radius) if inside else 0
    for y in range(height - 2, -1, -1):
        for x in range(width):
            distance[y, x] = min(distance[y, x], distance[y + 1, x] + 1)


@numba.njit(cache=True, nogil=True)
def section_heights(along_y: Array, along_x: Array, radius: int, distance: Array, heights: Array) -> None:
    """Heights of one section.

    along_y, along_x (y, x) uint8; distance (y, x) int32, used up; heights (y, x) int32: the sum of both affinities
    where it is at most 255, else INSIDE + the squared distance to the nearest such voxel, at most radius^2.
    """
    height, width = along_y.shape
    _columns(along_y, along_x, radius, distance)
    for y in range(height):
        row = distance[y]
        for x in range(width):
            if row[x] == 0:
                heights[y, x] = np.int32(along_y[y, x]) + along_x[y, x]
                continue
            best, way = row[x] * row[x], 1
            while way * way < best and way < radius:
                if x >= way:
                    best = min(best, way * way + row[x - way] * row[x - way])
                if x + way < width:
                    best = min(best, way * way + row[x + way] * row[x + way])
                way += 1
            heights[y, x] = INSIDE + best


@numba.njit(cache=True, nogil=True)
def uphill_directions(affinities: Array, radius: int, directions: Array) -> None:
    """Point each voxel to the highest of its four neighbours in the section, if that is not lower than itself.

    affinities (3, z, y, x) uint8; directions (z, y, x) uint8, SETTLED alone where all neighbours are lower, 0
    (background) where all six affinities of a voxel are 0.
    """
    _, depth, height, width = affinities.shape
    distance, heights = np.empty((height, width), np.int32), np.empty((height, width), np.int32)
    for z in range(depth):
        section_heights(affinities[1, z], affinities[2, z], radius, distance, heights)
        for y in range(height):
            for x in range(width):
                known = affinities[0, z, y, x] if z > 0 else 0
                known |= affinities[0, z + 1, y, x] if z + 1 < depth else 0
                known |= affinities[1, z, y, x] if y > 0 else 0
                known |= affinities[1, z, y + 1, x] if y + 1 < height else 0
                known |= affinities[2, z, y, x] if x > 0 else 0
                known |= affinities[2, z, y, x + 1] if x + 1 < width else 0
                if known == 0:
                    # Lower than all others: nothing flows there.
                    heights[y, x] = -1
        for y in range(height):
            for x in range(width):
                own = heights[y, x]
                up = heights[y - 1, x] if y > 0 else -1
                left = heights[y, x - 1] if x > 0 else -1
                down = heights[y + 1, x] if y + 1 < height else -1
                right = heights[y, x + 1] if x + 1 < width else -1
                best = max(own, up, left, down, right)
                bits = (up == best) << 1 | (left == best) << 2 | (down == best) << 4 | (right == best) << 5
                # A plateau's voxels point at each other, and at those of them that have a higher neighbour.
                directions[z, y, x] = 0 if own < 0 else (bits or SETTLED)
