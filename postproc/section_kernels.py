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
def _across(row: Array, radius: int, margin: Array, nearest: Array) -> None:
    """Squared distance of each voxel of a row to the nearest boundary, of the distances in its own column.

    row (x) int32; margin (x + 2 * radius) int32 is written over, nearest (x) int32 becomes the result. All ways of one
    length at a time, as vector instructions take them.
    """
    margin[:] = radius * radius
    for x in range(row.size):
        nearest[x] = margin[radius + x] = row[x] * row[x]
    farthest = nearest.max()
    for way in range(1, radius):
        added = np.int32(way * way)
        if added >= farthest:
            break
        before, after = margin[radius - way :][: row.size], margin[radius + way :][: row.size]
        for x in range(row.size):
            nearest[x] = min(nearest[x], np.int32(added + min(before[x], after[x])))


@numba.njit(cache=True, nogil=True)
def section_heights(along_y: Array, along_x: Array, radius: int, distance: Array, heights: Array) -> None:
    """Heights of one section.

    along_y, along_x (y, x) uint8; distance (y, x) int32, used up; heights (y, x) int32: the sum of both affinities
    where it is at most 255, else `inside_level` + the squared distance to the nearest such voxel, at most radius^2.
    """
    height, width = along_y.shape
    inside = inside_level(radius)
    margin, nearest = np.empty(width + 2 * radius, np.int32), np.empty(width, np.int32)
    _columns(along_y, along_x, radius, distance)
    for y in range(height):
        _across(distance[y], radius, margin, nearest)
        for x in range(width):
            total = np.int32(along_y[y, x]) + along_x[y, x]
            heights[y, x] = inside + nearest[x] if total > 255 else total


@numba.njit(cache=True, nogil=True)
def _begun(width: int, inside: int, heights: Array, work: Array) -> int:
    """Begin ways of one step: from boundaries next to a process; returns how many."""
    sums, steps, here, before = work[0], work[1], work[2], work[3]
    count = 0
    for i in range(heights.size):
        own = heights[i]
        sums[i], steps[i] = -1, 0
        if BACKGROUND < own < LEVELS:
            nearest = max(heights[i - width], heights[i - 1], heights[i + width], heights[i + 1])
            if nearest > inside:
                sums[i], steps[i], here[count], before[count] = own, 1, i, own
                count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _improved(step: int, width: int, heights: Array, count: int, work: Array) -> int:
    """Lead the ways of `count` voxels one step on, and list those that are better for it in their place; how many."""
    sums, steps, here, before, after = work[0], work[1], work[2], work[3], work[4]
    many = 0
    for k in range(count):
        i, way = here[k], before[k]
        for j in (i - width, i - 1, i + width, i + 1):
            if BACKGROUND < heights[j] < LEVELS and sums[j] < heights[j] and sums[j] < way:
                if steps[j] != step:
                    after[many], steps[j] = j, step
                    many += 1
                sums[j] = min(heights[j], way)
    for k in range(many):
        here[k], before[k] = after[k], sums[after[k]]
    return many


@numba.njit(cache=True, nogil=True)
def raise_boundaries(heights: Array, radius: int, work: Array) -> None:
    """Give every boundary voxel with a way into a process the height of its best way.

    Ways lead over the four neighbours and have fewer steps than the radius. The best one has the highest lowest sum of
    affinities, of such ways it is the shortest. So from each of these voxels one goes uphill until one is inside.

    heights (y + 2, x + 2) int32 of a section within a margin of BACKGROUND, changed in place: on a boundary with a way
    LEVELS + radius * lowest sum + steps that are left of the radius, more than any without one; BACKGROUND where there
    is neither a way nor an affinity. work (5, size of heights) int32, written over.
    """
    flat, width = heights.reshape(-1), heights.shape[1]
    count = _begun(width, inside_level(radius), flat, work) if radius > 1 else 0
    # What was improved by the last step improves its neighbours by the next one: all by values of the same step, so
    # that no order of visits is left in the result.
    for step in range(2, radius):
        count = _improved(step, width, flat, count, work)
    sums, steps = work[0], work[1]
    for i in range(flat.size):
        if radius > 1 and steps[i] > 0:
            flat[i] = LEVELS + radius * sums[i] + radius - steps[i]
        elif flat[i] == 0:
            flat[i] = BACKGROUND


@numba.njit(cache=True, nogil=True)
def _tell_processes_apart(heights: Array, along_y: Array, along_x: Array, inside: int, apart: Array) -> None:
    """Write what the height of each voxel is to boundaries: right behind one, all processes are one step deep.

    So they are told apart by their affinities. heights and apart (y + 2, x + 2) int32 have a margin.
    """
    height, width = along_y.shape
    for y in range(height):
        for x in range(width):
            own = heights[y + 1, x + 1]
            apart[y + 1, x + 1] = inside + 1 + np.int32(along_y[y, x]) + along_x[y, x] if own > inside else own


@numba.njit(cache=True, nogil=True)
def uphill_directions(affinities: Array, radius: int, directions: Array) -> None:
    """Point each voxel to the highest of its four neighbours in the section, if that is not lower than itself.

    A boundary voxel next to processes is pointed to the one whose voxel has the higher affinities.

    affinities (3, z, y, x) uint8; directions (z, y, x) uint8, SETTLED alone where all neighbours are lower, 0 where the
    height is BACKGROUND.
    """
    _, depth, height, width = affinities.shape
    distance, heights = np.empty((height, width), np.int32), np.full((height + 2, width + 2), BACKGROUND, np.int32)
    work, inside, apart = np.empty((5, heights.size), np.int32), inside_level(radius), heights.copy()
    for z in range(depth):
        section_heights(affinities[1, z], affinities[2, z], radius, distance, heights[1:-1, 1:-1])
        raise_boundaries(heights, radius, work)
        _tell_processes_apart(heights, affinities[1, z], affinities[2, z], inside, apart)
        for y in range(height):
            for x in range(width):
                own = heights[y + 1, x + 1]
                seen = apart if own < inside else heights
                up, left, down, right = seen[y, x + 1], seen[y + 1, x], seen[y + 2, x + 1], seen[y + 1, x + 2]
                best = max(own, up, left, down, right)
                bits = (up == best) << 1 | (left == best) << 2 | (down == best) << 4 | (right == best) << 5
                # A plateau's voxels point at each other, and at those of them that have a higher neighbour.
                directions[z, y, x] = 0 if own < 0 else (bits or SETTLED)
