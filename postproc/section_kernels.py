"""The inner loops of flooding sections: serial, compiled, without the interpreter's lock.

A section is flooded from the middles of its processes, highest affinities first, tile by tile: each tile of a fixed
grid with a margin of its surroundings, on which alone it depends. So blocks of any shape find the same directions, and
these are the ones that flooding the section at once gives, wherever no way from a middle is longer than the margin.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.watershed_kernels import SETTLED

Array = npt.NDArray[Any]

LEVELS = 511
"""Sums of both in-plane affinities: 0 to 510. A boundary has at most 255, a mean of 0.5."""

_DRY = 0x80
"""Direction of a voxel that is not flooded: on a boundary far from every process, or outside of the array."""


@numba.njit(cache=True, nogil=True)
def margin(radius: int) -> int:
    """Voxels along y and x around a tile on which its directions depend.

    With the radius all distances are those of the section; half of it more, and so are nearly all floods.
    """
    return radius + radius // 2


@numba.njit(cache=True, nogil=True)
def _columns(along_y: Array, along_x: Array, inside: bool, most: int, distance: Array) -> None:
    """Voxels (y) to the nearest voxel of the same column that is on a boundary, or inside; at most `most`.

    along_y, along_x (y, x) uint8; distance (y, x) int32.
    """
    height, width = along_y.shape
    for y in range(height):
        for x in range(width):
            found = (np.int32(along_y[y, x]) + along_x[y, x] > 255) == inside
            above = distance[y - 1, x] if y > 0 else np.int32(most)
            distance[y, x] = 0 if found else min(above + 1, most)
    for y in range(height - 2, -1, -1):
        for x in range(width):
            distance[y, x] = min(distance[y, x], distance[y + 1, x] + 1)


@numba.njit(cache=True, nogil=True)
def _across(row: Array, radius: int, widened: Array, nearest: Array) -> None:
    """Squared distance of each voxel of a row to the nearest boundary, of the distances in its own column.

    row (x) int32; widened (x + 2 * radius) int32 is written over, nearest (x) int32 becomes the result. All ways of one
    length at a time, as vector instructions take them.
    """
    widened[:] = radius * radius
    for x in range(row.size):
        nearest[x] = widened[radius + x] = row[x] * row[x]
    farthest = nearest.max()
    for way in range(1, radius):
        added = np.int32(way * way)
        if added >= farthest:
            break
        before, after = widened[radius - way :][: row.size], widened[radius + way :][: row.size]
        for x in range(row.size):
            nearest[x] = min(nearest[x], np.int32(added + min(before[x], after[x])))


@numba.njit(cache=True, nogil=True)
def _far_from_processes(along_y: Array, along_x: Array, radius: int, steps: Array) -> None:
    """Steps over the four neighbours to the nearest voxel inside of a process, at most the radius.

    along_y, along_x (y, x) uint8; steps (y, x) int32.
    """
    _columns(along_y, along_x, True, radius, steps)
    width = steps.shape[1]
    for row in steps:
        if row.max() < radius:
            # Not farther than in their columns, and that is near enough.
            continue
        for x in range(1, width):
            row[x] = min(row[x], row[x - 1] + 1)
        for x in range(width - 2, -1, -1):
            row[x] = min(row[x], row[x + 1] + 1)


@numba.njit(cache=True, nogil=True)
def section_heights(along_y: Array, along_x: Array, radius: int, heights: Array) -> None:
    """Squared distance of each voxel to the nearest boundary of the section, at most radius^2.

    along_y, along_x (y, x) uint8; heights (y, x) int32: 0 on a boundary that has a process fewer than `radius` steps
    away, -1 on any other.
    """
    height, width = along_y.shape
    distance, steps = np.empty((height, width), np.int32), np.empty((height, width), np.int32)
    widened, nearest = np.empty(width + 2 * radius, np.int32), np.empty(width, np.int32)
    _columns(along_y, along_x, False, radius, distance)
    _far_from_processes(along_y, along_x, radius, steps)
    for y in range(height):
        _across(distance[y], radius, widened, nearest)
        for x in range(width):
            heights[y, x] = nearest[x] if steps[y, x] < radius else -1


@numba.njit(cache=True, nogil=True)
def _find_peaks(heights: Array, width: int, directions: Array) -> None:
    """Settle voxels without a higher neighbour; 0 for others that are to be flooded.

    heights flat int32 within a border of -1; directions flat uint8, all _DRY.
    """
    many = heights.size - 2 * width
    own, found = heights[width:][:many], directions[width:][:many]
    above, before, after, below = (
        heights[:many],
        heights[width - 1 :][:many],
        heights[width + 1 :],
        heights[2 * width :],
    )
    for i in range(many):
        higher = (above[i] > own[i]) | (before[i] > own[i]) | (after[i] > own[i]) | (below[i] > own[i])
        flooded = 0 if higher | (own[i] == 0) else SETTLED
        found[i] = _DRY if own[i] < 0 else flooded


@numba.njit(cache=True, nogil=True)
def _find_middles(heights: Array, width: int, directions: Array, queue: Array) -> None:
    """Settle the regional maxima of the heights; 0 where it is to be flooded from them.

    heights flat int32 within a border of -1; directions flat uint8, all _DRY; queue flat int32, written over.
    """
    _find_peaks(heights, width, directions)
    length = 0
    for i in range(width, heights.size - width):
        if directions[i] == SETTLED:
            for j in (i - width, i - 1, i + 1, i + width):
                if heights[j] == heights[i] and directions[j] == 0:
                    directions[i] = 0
            if directions[i] == 0:
                queue[length] = i
                length += 1
    k = 0
    while k < length:
        i = queue[k]
        k += 1
        for j in (i - width, i - 1, i + 1, i + width):
            if directions[j] == SETTLED and heights[j] == heights[i]:
                directions[j] = 0
                queue[length] = j
                length += 1


@numba.njit(cache=True, nogil=True)
def _join_middles(width: int, directions: Array) -> None:
    """Point what is settled at its settled neighbours."""
    for i in range(width, directions.size - width):
        if directions[i] & SETTLED:
            bits = (directions[i - width] & SETTLED) >> 5 | (directions[i - 1] & SETTLED) >> 4
            bits |= (directions[i + width] & SETTLED) >> 2 | (directions[i + 1] & SETTLED) >> 1
            directions[i] |= bits


@numba.njit(cache=True, nogil=True)
def _begin(totals: Array, directions: Array, first: Array, last: Array, after: Array) -> None:
    """Queue the voxels of middles, each behind those of its level."""
    for i in range(directions.size):
        if directions[i] & SETTLED:
            level = totals[i]
            after[i] = -1
            if first[level] < 0:
                first[level] = i
            else:
                after[last[level]] = i
            last[level] = i


@numba.njit(cache=True, nogil=True)
def _flood(totals: Array, width: int, directions: Array, after: Array) -> None:
    """Lead every voxel that is not dry to a middle, as flooding from all of them does: highest sums first.

    Of the voxels that have been reached the one of the highest sum reaches its neighbours next, of equal ones that
    which has waited longest. All is written out: as calls, or with tables of neighbours, it takes half as long again.

    totals flat int32; directions flat uint8 of `_find_middles`, each 0 is replaced; after flat int32, written over.
    """
    first, last = np.full(LEVELS, -1, np.int32), np.empty(LEVELS, np.int32)
    _begin(totals, directions, first, last, after)
    level = LEVELS - 1
    while level >= 0:
        i = first[level]
        if i < 0:
            level -= 1
            continue
        first[level] = after[i]
        for d in range(4):
            if d == 0:
                j, back = i - width, 16
            elif d == 1:
                j, back = i - 1, 32
            elif d == 2:
                j, back = i + 1, 4
            else:
                j, back = i + width, 2
            if directions[j] == 0:
                directions[j] = back
                own = totals[j]
                after[j] = -1
                if first[own] < 0:
                    first[own] = j
                else:
                    after[last[own]] = j
                last[own] = j
                if own > level:
                    level = own


@numba.njit(cache=True, nogil=True)
def _tile_directions(along_y: Array, along_x: Array, tissue: Array, radius: int, directions: Array) -> None:
    """Directions in a tile and its margin.

    along_y, along_x (y, x) uint8; tissue (y, x) bool, or empty for everywhere; directions (y + 2, x + 2) uint8, _DRY
    where nothing is flooded.
    """
    height, width = along_y.shape
    heights, totals = np.full((height + 2, width + 2), -1, np.int32), np.zeros((height + 2, width + 2), np.int32)
    queue = np.empty(heights.size, np.int32)
    section_heights(along_y, along_x, radius, heights[1:-1, 1:-1])
    for y in range(height):
        for x in range(width):
            totals[y + 1, x + 1] = np.int32(along_y[y, x]) + along_x[y, x]
            if tissue.size and not tissue[y, x]:
                # No flood enters it, so none gets through it to what lies behind.
                heights[y + 1, x + 1] = -1
    directions[:] = _DRY
    _find_middles(heights.reshape(-1), width + 2, directions.reshape(-1), queue)
    _join_middles(width + 2, directions.reshape(-1))
    _flood(totals.reshape(-1), width + 2, directions.reshape(-1), queue)
    if tissue.size:
        # Boundaries that have a process near, but only beyond what is masked.
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                if directions[y, x] == 0:
                    directions[y, x] = _DRY


@numba.njit(cache=True, nogil=True)
def flood_directions(
    affinities: Array,
    tissue: Array,
    radius: int,
    tile: int,
    origin: tuple[int, int],
    core: tuple[int, int, int, int],
    found: Array,
) -> None:
    """Point each voxel to the neighbour in its section from which a flood reaches it first.

    The middle of a process, from which it is flooded, is a regional maximum of its distance to boundaries; its voxels
    point at each other. So do those on a boundary that no flood reaches, where there is any affinity.

    Args:
        affinities: (3, z, y, x) uint8; with all of each tile that the core meets, and `margin` voxels around these, as
            far as there are any in the volume.
        tissue: (z, y, x) bool, True where voxels may be flooded, all affinities elsewhere being 0; or (z, 0, 0) for
            everywhere.
        radius: voxels, see `section_heights`.
        tile: extent of tiles along y and x, voxels; the first one begins where the volume does.
        origin: place (y, x) in the volume of the first affinities.
        core: first y and x, and one past the last y and x, in voxels of the affinities.
        found: (z, y, x) uint8 of the core, becomes the directions: SETTLED and the bits of neighbours in a middle; 0
            where there is no affinity and no process near.
    """
    _, depth, height, width = affinities.shape
    top, left, bottom, right = core
    around = margin(radius)
    for z in range(depth):
        along_y, along_x = affinities[1, z], affinities[2, z]
        for y in range(top - (top + origin[0]) % tile, bottom, tile):
            for x in range(left - (left + origin[1]) % tile, right, tile):
                first_y, first_x = max(y - around, 0), max(x - around, 0)
                last_y, last_x = min(y + tile + around, height), min(x + tile + around, width)
                own_y, own_x = along_y[first_y:last_y, first_x:last_x], along_x[first_y:last_y, first_x:last_x]
                directions = np.empty((own_y.shape[0] + 2, own_y.shape[1] + 2), np.uint8)
                _tile_directions(own_y, own_x, tissue[z, first_y:last_y, first_x:last_x], radius, directions)
                for v in range(max(y, top), min(y + tile, bottom)):
                    for u in range(max(x, left), min(x + tile, right)):
                        bits = directions[v - first_y + 1, u - first_x + 1]
                        if bits == _DRY:
                            bits = _left_over(own_y, own_x, directions, v - first_y, u - first_x)
                        found[z, v - top, u - left] = bits


@numba.njit(cache=True, nogil=True)
def _left_over(along_y: Array, along_x: Array, directions: Array, y: int, x: int) -> int:
    """Direction of a voxel that no flood reaches: to its neighbours of the same kind; 0 without affinity."""
    if not along_y[y, x] and not along_x[y, x]:
        return 0
    bits = SETTLED
    height, width = along_y.shape
    for v, u, bit in ((y - 1, x, 2), (y, x - 1, 4), (y + 1, x, 16), (y, x + 1, 32)):
        if 0 <= v < height and 0 <= u < width and directions[v + 1, u + 1] == _DRY and (along_y[v, u] or along_x[v, u]):
            bits |= bit
    return bits
