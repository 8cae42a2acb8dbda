"""What is done to each block of affinities?

Each step reads the sidecar's files of the steps before it and writes its own, and depends on nothing else: any worker
may do it, at any time after those, and again. 0 is background throughout. In the files of a block:

- fragments: what flows together within the block, 1, 2, ...
- border fragments: those that touch another block, 1, 2, ... in the order of fragments.
- segments: what fragments were merged to within the block, 1, 2, ...: border fragments, in their order, which never
  merge within a block; then other open ones, which may merge further; then closed ones, which are finished.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.agglomeration import agglomerate
from fgnet.postproc.blockwise_plan import AffinitySource, BlockPlan
from fgnet.postproc.region_graph import Ints, RegionGraph, fragment_extents, region_graph
from fgnet.postproc.sidecar import Arrays, Sidecar
from fgnet.postproc.watershed import basin_directions, basins, face_links
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import AXES, Box, Triple

FRAGMENTS, BORDERS, CONTACTS = "fragments", "borders", "contacts"


def pieces_step(threshold: int) -> str:
    """Name of the segments within blocks, for the threshold of this number."""
    return f"pieces-{threshold}"


def ids_step(threshold: int) -> str:
    """Name of the final ids, for the threshold of this number."""
    return f"ids-{threshold}"


def cut_block(plan: BlockPlan, block: Triple, source: AffinitySource, sidecar: Sidecar) -> None:
    """Find the fragments of a block, their contacts, and what these merge to within the block.

    Raises:
        DecodingError: if the source gives anything but uint8 affinities of the box, or a file cannot be written.
    """
    steps = [pieces_step(i) for i in range(len(plan.options.thresholds))]
    if all(sidecar.has(step, block) for step in (FRAGMENTS, BORDERS, *steps)):
        return
    box, region = plan.box(block), plan.region(block)
    affinities = _read(source, region)
    core = box.shift([-first for first in region.start])
    directions = basin_directions(affinities, plan.options.watershed)
    fragments, count = basins(directions[core.slices])
    links = [face_links(directions, core, axis) if plan.before(block, axis) else None for axis in range(3)]
    del directions
    affinities = np.ascontiguousarray(affinities[(slice(None), *core.slices)])
    border = np.zeros(count + 1, np.bool_)
    for axis in range(3):
        for neighbour, plane in ((plan.before(block, axis), 0), (plan.after(block, axis), -1)):
            if neighbour is not None:
                border[np.take(fragments, plane, axis)] = True
    border[0] = False
    sidecar.save(FRAGMENTS, block, {"fragments": fragments})
    sidecar.save(BORDERS, block, _planes(plan, block, fragments, affinities, links, border))
    graph = region_graph(affinities, fragments, count, start=box.start, shape=plan.shape)
    del affinities
    sizes, first = fragment_extents(fragments, count)
    extents = sizes, plan.voxel_ids(box, first)
    for step, threshold in zip(steps, plan.options.thresholds, strict=True):
        sidecar.save(step, block, _merged(graph, threshold, border, *extents))


def _read(source: AffinitySource, region: Box) -> npt.NDArray[np.uint8]:
    affinities = source.affinities(region)
    if affinities.dtype != np.uint8 or affinities.shape != (3, *region.shape):
        raise DecodingError(
            f"the source gave affinities of shape {affinities.shape} and dtype {affinities.dtype}",
            where=f"box {region}",
            remedy=f"give uint8 of shape {(3, *region.shape)}, 255 is 1.0",
        )
    return affinities


def _planes(
    plan: BlockPlan,
    block: Triple,
    fragments: npt.NDArray[np.uint32],
    affinities: npt.NDArray[np.uint8],
    links: list[npt.NDArray[np.bool_] | None],
    border: npt.NDArray[np.bool_],
) -> Arrays:
    """What the block's neighbours, and itself, need to know of its outer planes: numbers of border fragments."""
    numbers = np.where(border, np.cumsum(border), 0).astype(np.uint32)
    planes: Arrays = {}
    for axis, name in enumerate(AXES):
        joined = links[axis]
        if joined is not None:
            planes[f"first_{name}"] = numbers[np.take(fragments, 0, axis)]
            planes[f"links_{name}"] = joined
            planes[f"affinities_{name}"] = np.take(affinities[axis], 0, axis)
        if plan.after(block, axis) is not None:
            planes[f"last_{name}"] = numbers[np.take(fragments, -1, axis)]
    return planes


def _merged(
    graph: RegionGraph,
    threshold: float,
    border: npt.NDArray[np.bool_],
    sizes: Ints,
    first: Ints,
) -> Arrays:
    """The segments of a block at one threshold, and the contacts between those that are open."""
    result = agglomerate(graph, threshold, frozen=border)
    is_root = result.roots == np.arange(graph.nodes)
    is_root[0] = False
    groups = border, is_root & result.frozen & ~border, is_root & ~result.frozen
    order = np.concatenate([np.flatnonzero(group) for group in groups])
    numbers = np.zeros(graph.nodes, np.uint32)
    numbers[order] = np.arange(1, order.size + 1)
    segments = numbers[result.roots]
    voxels = np.zeros(order.size + 1, np.int64)
    np.add.at(voxels, segments, sizes)
    # Fragments are in the order of their first voxels, and the last of several values assigned is the one that stays.
    lowest = np.zeros(order.size + 1, np.int64)
    lowest[segments[::-1]] = first[::-1]
    lower, higher, sums, counts, faces = result.graph.columns
    return {
        "segments": segments,
        "open": np.array([border.sum(), np.count_nonzero(result.frozen & is_root)]),
        "voxels": voxels,
        "first": lowest,
        "contacts": np.stack([numbers[lower].astype(np.int64), numbers[higher], sums, counts, faces]),
    }


def join_block(plan: BlockPlan, block: Triple, sidecar: Sidecar) -> None:
    """Collect links and contacts across the faces to the blocks before this one, which must be cut too.

    Raises:
        DecodingError: if one of the blocks was not cut.
    """
    if sidecar.has(CONTACTS, block):
        return
    own = sidecar.load(BORDERS, block)
    box = plan.box(block)
    found: Arrays = {}
    for axis, name in enumerate(AXES):
        neighbour = plan.before(block, axis)
        if neighbour is None:
            continue
        here = own[f"first_{name}"].astype(np.int64)
        there = sidecar.load(BORDERS, neighbour)[f"last_{name}"].astype(np.int64)
        links, both = own[f"links_{name}"], (here > 0) & (there > 0)
        shape = tuple(1 if a == axis else extent for a, extent in enumerate(box.shape))
        plane = Box(box.start, (box.start[0] + shape[0], box.start[1] + shape[1], box.start[2] + shape[2]))
        faces = 3 * plan.voxel_ids(plane, np.arange(here.size)).reshape(here.shape) + axis
        values = own[f"affinities_{name}"].astype(np.int64)
        apart = both & ~links
        found[f"links_{name}"] = np.unique(np.stack([there[links], here[links]]), axis=1)
        found[f"contacts_{name}"] = _summed(*(column[apart] for column in (there, here, values, faces)))
    sidecar.save(CONTACTS, block, found)


def _summed(there: Ints, here: Ints, values: Ints, faces: Ints) -> Ints:
    """Contacts (5, n) of single faces between fragments of two blocks; the two count theirs independently."""
    order = np.lexsort((here, there))
    there, here = there[order], here[order]
    new = np.ones(there.size, np.bool_)
    new[1:] = (there[1:] != there[:-1]) | (here[1:] != here[:-1])
    starts = np.flatnonzero(new)
    if not starts.size:
        return np.empty((5, 0), np.int64)
    counts = np.diff(starts, append=there.size)
    sums, lowest = np.add.reduceat(values[order], starts), np.minimum.reduceat(faces[order], starts)
    return np.stack([there[starts], here[starts], sums, counts, lowest])


def block_labels(block: Triple, threshold: int, sidecar: Sidecar) -> npt.NDArray[np.uint64]:
    """The finished labels of a block.

    Returns:
        (z, y, x) uint64: 1, 2, ... over the whole volume in the order of first voxels; 0 is background.

    Raises:
        DecodingError: if the blocks were not merged at this threshold.
    """
    ids = sidecar.load(ids_step(threshold), block)["ids"]
    fragments = sidecar.load(FRAGMENTS, block)["fragments"]
    labels = np.empty(fragments.shape, np.uint64)
    _look_up(fragments, ids[sidecar.load(pieces_step(threshold), block)["segments"]], labels)
    return labels


@numba.njit(cache=True, nogil=True)
def _look_up(fragments: npt.NDArray[Any], table: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    source, target = fragments.reshape(-1), labels.reshape(-1)
    for i in range(source.size):
        target[i] = table[source[i]]
