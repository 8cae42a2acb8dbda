"""The inner loops of the watershed: serial, compiled, without the interpreter's lock.

Directions of a voxel are bits: 1, 2, 4 towards the neighbour before it along z, y, x; 8, 16, 32 towards the one after.
A direction is two-way if the neighbour points back: both lie on the same plateau.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SETTLED = 0x40
"""A voxel that plateau division need not look at (again); after it, a root without neighbours."""

_ODD = 0x80


@numba.njit(cache=True, nogil=True)
def steepest_directions(affinities: Array, low: np.uint8, high: np.uint8, directions: Array) -> None:
    """Point each voxel along its highest affinity, and along every one from `high` on; 0 where none exceeds `low`.

    affinities (3, z, y, x) uint8, directions (z, y, x) uint8. Voxels at `high` or above are marked settled: whatever
    they point to points back. Rows are sliced before the innermost loop, so that it vectorises.
    """
    _, depth, height, width = affinities.shape
    border = np.full(width, low, np.uint8)
    along_x = np.full(width + 1, low, np.uint8)
    for z in range(depth):
        for y in range(height):
            before_z = affinities[0, z, y] if z > 0 else border
            before_y = affinities[1, z, y] if y > 0 else border
            after_z = affinities[0, z + 1, y] if z + 1 < depth else border
            after_y = affinities[1, z, y + 1] if y + 1 < height else border
            along_x[1:width] = affinities[2, z, y, 1:]
            before_x, after_x = along_x[:width], along_x[1:]
            row = directions[z, y]
            for x in range(width):
                best = max(before_z[x], before_y[x], before_x[x], after_z[x], after_y[x], after_x[x])
                least = min(best, high)
                bits = np.uint8(before_z[x] >= least)
                bits |= np.uint8(before_y[x] >= least) << np.uint8(1)
                bits |= np.uint8(before_x[x] >= least) << np.uint8(2)
                bits |= np.uint8(after_z[x] >= least) << np.uint8(3)
                bits |= np.uint8(after_y[x] >= least) << np.uint8(4)
                bits |= np.uint8(after_x[x] >= least) << np.uint8(5)
                bits |= np.uint8(best >= high) << np.uint8(6)
                row[x] = bits if best > low else np.uint8(0)


@numba.njit(cache=True, nogil=True)
def _pushed(queue: Array, length: int, voxel: int) -> Array:
    """The queue with the voxel at `length`; twice as long where it was full."""
    if length == queue.size:
        longer = np.empty(2 * queue.size, queue.dtype)
        longer[:length] = queue
        queue = longer
    queue[length] = voxel
    return queue


@numba.njit(cache=True, nogil=True)
def _steps(height: int, width: int) -> tuple[Array, Array]:
    """Per direction: the way to the neighbour in a flat array, and the bit with which it points back."""
    plane = height * width
    return np.array([-plane, -width, -1, plane, width, 1]), np.array([8, 16, 32, 1, 2, 4], np.uint8)


@numba.njit(cache=True, nogil=True)
def _find_exits(directions: Array, divided: Array, step: Array, back: Array) -> tuple[Array, int]:
    """Settle the voxels with a one-way direction, the lowest of which they take; returns those on plateaus, a queue."""
    queue = np.empty(1 << 12, np.int64)
    length = 0
    for i in range(directions.size):
        bits = directions[i]
        if bits == 0 or bits & SETTLED:
            continue
        one_way, plateau = 0, 0
        for d in range(6):
            if bits & (1 << d):
                two_way = (directions[i + step[d]] & back[d]) != 0
                plateau |= two_way
                one_way |= (not two_way) << d
        if one_way:
            divided[i] = one_way & -one_way
            directions[i] |= SETTLED
            if plateau:
                queue = _pushed(queue, length, i)
                length += 1
    return queue, length


@numba.njit(cache=True, nogil=True)
def _way_to_level(directions: Array, i: int, level: int, step: Array, back: Array) -> int:
    """The lowest direction from a plateau voxel to one that was settled at the other level."""
    for d in range(6):
        if directions[i] & (1 << d):
            neighbour = directions[i + step[d]]
            if neighbour & back[d] and neighbour & SETTLED and (neighbour & _ODD) != level:
                return 1 << d
    return 0


@numba.njit(cache=True, nogil=True)
def divide_plateaus(directions: Array, divided: Array, height: int, width: int, limit: int) -> None:
    """Lead each plateau voxel to its nearest exit, at most `limit` steps away; the lowest direction wins.

    A voxel with a one-way direction is an exit. Voxels farther from every exit stay a plateau, cut off from those that
    were led away. The result depends on no order of visits: a voxel looks only at voxels one step nearer to an exit.

    directions: flat uint8, its upper bits are used up. divided: flat uint8, a copy of the directions; its result.
    """
    step, back = _steps(height, width)
    queue, length = _find_exits(directions, divided, step, back)
    # Levels alternate in the bit _ODD: those of two-way neighbours differ by one at most.
    first, level = 0, _ODD
    for _ in range(limit):
        last = length
        for k in range(first, last):
            i = queue[k]
            for d in range(6):
                j = i + step[d]
                if directions[i] & (1 << d) and directions[j] & back[d] and not directions[j] & SETTLED:
                    directions[j] |= SETTLED | level
                    queue = _pushed(queue, length, j)
                    length += 1
        for k in range(last, length):
            divided[queue[k]] = _way_to_level(directions, queue[k], level, step, back)
        first, level = last, _ODD - level
    for k in range(first, length):
        i = queue[k]
        for d in range(6):
            j = i + step[d]
            if directions[i] & (1 << d) and directions[j] & back[d] and not directions[j] & SETTLED:
                # A voxel that loses its last direction is a root, no background.
                divided[j] = (divided[j] & ~back[d]) | SETTLED


@numba.njit(cache=True, nogil=True)
def divide_plateaus_in_order(directions: Array, height: int, width: int) -> None:
    """Lead each plateau voxel to an exit however far, in the order of waterz; the highest direction wins.

    What a voxel points to depends on the order in which its neighbours were visited, so this is not for blocks.
    directions: flat uint8; changed in place.
    """
    step, back = _steps(height, width)
    queue = np.empty(1 << 12, np.int64)
    length = 0
    for i in range(directions.size):
        bits = directions[i]
        if bits == 0 or bits & SETTLED:
            continue
        for d in range(6):
            if bits & (1 << d) and not directions[i + step[d]] & back[d]:
                directions[i] |= SETTLED
                queue = _pushed(queue, length, i)
                length += 1
                break
    k = 0
    while k < length:
        i = queue[k]
        k += 1
        way = 0
        for d in range(6):
            if directions[i] & (1 << d):
                j = i + step[d]
                if not directions[j] & back[d]:
                    way = 1 << d
                elif not directions[j] & SETTLED:
                    directions[j] |= SETTLED
                    queue = _pushed(queue, length, j)
                    length += 1
        directions[i] = way


@numba.njit(cache=True, nogil=True)
def _root(parents: Array, i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = int(parents[i])
    return i


@numba.njit(cache=True, nogil=True)
def _unite(parents: Array, i: int, j: int) -> None:
    a, b = _root(parents, i), _root(parents, j)
    if a < b:
        parents[b] = a
    else:
        parents[a] = b


@numba.njit(cache=True, nogil=True)
def _connect(directions: Array, parents: Array) -> None:
    """Unite what directions connect; roots are the first voxels of their trees, so parents lie before children."""
    depth, height, width = directions.shape
    i = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                parents[i] = i
                bits = directions[z, y, x]
                if x > 0 and (bits & 4 or directions[z, y, x - 1] & 32):
                    _unite(parents, i, i - 1)
                if y > 0 and (bits & 2 or directions[z, y - 1, x] & 16):
                    _unite(parents, i, i - width)
                if z > 0 and (bits & 1 or directions[z - 1, y, x] & 8):
                    _unite(parents, i, i - height * width)
                i += 1


@numba.njit(cache=True, nogil=True)
def label_basins(directions: Array, labels: Array) -> int:
    """Number what is connected by directions 1, 2, ... in the order of first voxels, 0 where there are none.

    directions (z, y, x) uint8, where directions that leave the array are not followed; labels (z, y, x) uint32,
    contiguous. Returns the highest label.
    """
    depth, height, width = directions.shape
    flat = labels.reshape(-1)
    _connect(directions, flat)
    count = 0
    i = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if directions[z, y, x] == 0:
                    flat[i] = 0
                elif flat[i] == i:
                    count += 1
                    flat[i] = count
                else:
                    flat[i] = flat[flat[i]]
                i += 1
    return count
