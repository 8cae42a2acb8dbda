"""The inner loops of flooding sections: serial, compiled, without the interpreter's lock.

Every voxel gets a height: inside of processes its distance to the nearest boundary of its section, above all of that;
on a boundary what the best way into a process is like, that whose lowest affinities are highest. So nothing that lies
in the middle of a boundary is a fragment, as it is none where processes are flooded in turn. All of it depends on a
neighbourhood of bounded radius alone.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.watershed_kernels import SETTLED

Array = npt.NDArray[Any]

LEVELS = 256
"""Sums of both in-plane affinities that a boundary may have: 0 to 255."""

BACKGROUND = -1
"""Height of a voxel without affinities in its section, far from every process: lower than all others."""


@numba.njit(cache=True, nogil=True)
def inside_level(radius: int) -> int:
    """Height that every voxel inside of a process exceeds, and none on a boundary."""
    return LEVELS * (radius + 1)


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
    where it is at most 255, else `inside_level` + the squared distance to the nearest such voxel, at most radius^2.
    """
    height, width = along_y.shape
    inside = inside_level(radius)
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
            heights[y, x] = inside + best


@numba.njit(cache=True, nogil=True)
def _improved(
    step: int, shape: tuple[int, int], heights: Array, here: Array, ways: Array, sums: Array, steps: Array, after: Array
) -> int:
    """Lead the ways of voxels `here` one step on; returns how many voxels have a better one now, and are in `after`."""
    height, width = shape
    many = 0
    for i, way in zip(here, ways):  # noqa: B905 - compiled without strict
        y, x = i // width, i % width
        for j, exists in ((i - width, y > 0), (i - 1, x > 0), (i + width, y + 1 < height), (i + 1, x + 1 < width)):
            if not exists or heights[j] >= LEVELS:
                continue
            lowest = min(heights[j], way)
            if lowest > sums[j]:
                if steps[j] != step:
                    after[many], steps[j] = j, step
                    many += 1
                sums[j] = lowest
    return many


@numba.njit(cache=True, nogil=True)
def raise_boundaries(heights: Array, radius: int) -> None:
    """Give every boundary voxel with a way into a process the height of its best way.

    Ways lead over the four neighbours and have fewer steps than the radius. The best one has the highest lowest sum of
    affinities, of such ways it is the shortest. So from each of these voxels one goes uphill until one is inside.

    heights (y, x) int32 of a section, changed in place: on a boundary with a way LEVELS + radius * lowest sum + steps
    that are left of the radius, more than any without one; BACKGROUND where there is neither a way nor an affinity.
    """
    flat = heights.reshape(-1)
    sums, steps = np.full(flat.size, -1, np.int16), np.zeros(flat.size, np.int16)
    here, after = np.flatnonzero(flat > inside_level(radius)).astype(np.int32), np.empty(flat.size, np.int32)
    ways = np.full(here.size, LEVELS, np.int16)
    # What was improved by the last step improves its neighbours by the next one: all by values of the same step, so
    # that no order of visits is left in the result.
    for step in range(1, radius):
        many = _improved(step, heights.shape, flat, here, ways, sums, steps, after)
        here = after[:many].copy()
        ways = sums[here]
    for i in range(flat.size):
        if steps[i] > 0:
            flat[i] = LEVELS + radius * sums[i] + radius - steps[i]
        elif flat[i] == 0:
            flat[i] = BACKGROUND


@numba.njit(cache=True, nogil=True)
def _seen(own: int, y: int, x: int, heights: Array, along_y: Array, along_x: Array, inside: int) -> Any:
    """Height of a voxel as a neighbour of the height `own` sees it.

    From a boundary, processes are told apart by their affinities: right behind it, all are one step deep.
    """
    there = heights[y, x]
    return inside + 1 + np.int32(along_y[y, x]) + along_x[y, x] if own < inside < there else there


@numba.njit(cache=True, nogil=True)
def uphill_directions(affinities: Array, radius: int, directions: Array) -> None:
    """Point each voxel to the highest of its four neighbours in the section, if that is not lower than itself.

    A boundary voxel next to processes is pointed to the one whose voxel has the higher affinities.

    affinities (3, z, y, x) uint8; directions (z, y, x) uint8, SETTLED alone where all neighbours are lower, 0 where the
    height is BACKGROUND.
    """
    _, depth, height, width = affinities.shape
    distance, heights = np.empty((height, width), np.int32), np.empty((height, width), np.int32)
    inside = inside_level(radius)
    for z in range(depth):
        sides = heights, affinities[1, z], affinities[2, z], inside
        section_heights(affinities[1, z], affinities[2, z], radius, distance, heights)
        raise_boundaries(heights, radius)
        for y in range(height):
            for x in range(width):
                own = heights[y, x]
                up = _seen(own, y - 1, x, *sides) if y > 0 else BACKGROUND
                left = _seen(own, y, x - 1, *sides) if x > 0 else BACKGROUND
                down = _seen(own, y + 1, x, *sides) if y + 1 < height else BACKGROUND
                right = _seen(own, y, x + 1, *sides) if x + 1 < width else BACKGROUND
                best = max(own, up, left, down, right)
                bits = (up == best) << 1 | (left == best) << 2 | (down == best) << 4 | (right == best) << 5
                # A plateau's voxels point at each other, and at those of them that have a higher neighbour.
                directions[z, y, x] = 0 if own < 0 else (bits or SETTLED)
