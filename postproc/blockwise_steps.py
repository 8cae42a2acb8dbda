"""What is done to each block of affinities?

Each step reads the sidecar's files of the steps before it and writes its own, and depends on nothing else: any worker
may do it, at any time after those, and again. In the files of a block:

- fragments: what flows together within the block, 1, 2, ...; 0 is background.
- border fragments: those that touch another block, in the order of fragments.
- segments: what fragments were merged to within the block.
- open segments: those that may merge further, 0, 1, ...: border fragments first, in their order, which never merge
  within a block; then others. What is not open is closed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

from fgnet.postproc.agglomeration import Agglomeration, agglomerate
from fgnet.postproc.blockwise_plan import AffinitySource, BlockPlan, MaskedSource
from fgnet.postproc.region_graph import Ints, RegionGraph, fragment_extents, region_graph
from fgnet.postproc.sidecar import Arrays, Sidecar
from fgnet.postproc.watershed import basin_directions, basins, leads_out
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import AXES, Box, Triple

FRAGMENTS, BORDERS, CONTACTS = "fragments", "borders", "contacts"


def pieces_step(level: int) -> str:
    """Name of what is merged within the units of a level (see `blockwise_levels`)."""
    return f"pieces-{level}"


def cut_block(plan: BlockPlan, block: Triple, source: AffinitySource, sidecar: Sidecar) -> None:
    """Find the fragments of a block, their contacts, and what these merge to within the block.

    Whichever of two neighbours is cut last joins them.

    Raises:
        DecodingError: if the source gives anything but uint8 affinities of the box, or a file cannot be written.
    """
    if all(sidecar.has(step, block) for step in (FRAGMENTS, BORDERS, pieces_step(0))):
        return
    box, region = plan.box(block), plan.region(block)
    affinities = _read(source, region)
    tissue = source.tissue(region) if isinstance(source, MaskedSource) else None
    directions = basin_directions(affinities, plan.options.watershed, region=region, core=box, tissue=tissue)
    fragments, count = basins(directions)
    core = box.shift([-first for first in region.start])
    affinities = np.ascontiguousarray(affinities[(slice(None), *core.slices)])
    border = np.zeros(count + 1, np.bool_)
    for axis in range(3):
        for neighbour, plane in ((plan.before(block, axis), 0), (plan.after(block, axis), -1)):
            if neighbour is not None:
                border[np.take(fragments, plane, axis)] = True
    border[0] = False
    planes = _planes(plan, block, fragments, affinities, directions, border)
    del directions
    sidecar.save(FRAGMENTS, block, _packed(fragments))
    graph = region_graph(affinities, fragments, count, start=box.start, shape=plan.shape)
    del affinities
    sizes, first = fragment_extents(fragments, count)
    sizes[0] = 0
    del fragments
    extents = {"voxels": sizes, "first": plan.voxel_ids(box, first)}
    sidecar.save(pieces_step(0), block, _merged(graph, plan.options.highest, border) | extents)
    sidecar.save(BORDERS, block, planes)
    _join_neighbours(plan, block, sidecar)


def _packed(fragments: npt.NDArray[np.uint32]) -> Arrays:
    """Fragments as bytes: much the largest of what is kept, and waiting for the disk takes longer than packing."""
    code = Blosc("lz4", clevel=1, shuffle=Blosc.SHUFFLE).encode(np.ascontiguousarray(fragments))
    return {"packed": np.frombuffer(code, np.uint8), "shape": np.array(fragments.shape)}


def load_fragments(sidecar: Sidecar, block: Triple) -> npt.NDArray[np.uint32]:
    """(z, y, x) fragments of a block that was cut, 1, 2, ...; 0 is background.

    Raises:
        DecodingError: if it was not cut, or its file cannot be read.
    """
    found = sidecar.load(FRAGMENTS, block)
    try:
        values = np.frombuffer(Blosc().decode(found["packed"]), np.uint32)
        return values.reshape(found["shape"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise DecodingError(
            f"it cannot be read: {error}",
            where=sidecar.path(FRAGMENTS, block),
            remedy="remove it, and do its step again",
        ) from error


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
    directions: npt.NDArray[np.uint8],
    border: npt.NDArray[np.bool_],
) -> Arrays:
    """What the block's neighbours, and itself, need to know of its outer planes: numbers of border fragments."""
    numbers = np.where(border, np.cumsum(border), 0).astype(np.uint32)
    planes: Arrays = {"many": np.array([border.sum()])}
    for axis, name in enumerate(AXES):
        if plan.before(block, axis) is not None:
            planes[f"first_{name}"] = numbers[np.take(fragments, 0, axis)]
            planes[f"leads_before_{name}"] = leads_out(directions, axis, after=False)
            planes[f"affinities_{name}"] = np.take(affinities[axis], 0, axis)
        if plan.after(block, axis) is not None:
            planes[f"last_{name}"] = numbers[np.take(fragments, -1, axis)]
            planes[f"leads_after_{name}"] = leads_out(directions, axis, after=True)
        for side in ("first", "last"):
            if f"{side}_{name}" in planes:
                touched = np.zeros(border.size, np.bool_)
                touched[planes[f"{side}_{name}"]] = True
                planes[f"touched_{side}_{name}"] = np.flatnonzero(touched[1:])
    return planes


def _merged(graph: RegionGraph, threshold: float, border: npt.NDArray[np.bool_]) -> Arrays:
    """What the fragments of a block merge to, and the contacts between open segments."""
    result = agglomerate(graph, threshold, frozen=border)
    inner = result.frozen & (result.roots == np.arange(graph.nodes)) & ~border
    inner[0] = False
    opened = np.concatenate([np.flatnonzero(border), np.flatnonzero(inner)])
    return open_piece(result, opened)


def open_piece(result: Agglomeration, opened: Ints) -> Arrays:
    """What is kept of an agglomeration: its merges by nodes, the nodes of open segments, and the contacts of these."""
    numbers = np.full(result.roots.size, -1)
    numbers[opened] = np.arange(opened.size)
    lower, higher, sums, counts, faces = result.graph.columns
    return {
        "many": np.array([result.roots.size, opened.size, lower.size, result.merges.first.size]),
        "merges": np.stack(result.merges.columns),
        "open": opened,
        "contacts": np.stack([numbers[lower], numbers[higher], sums, counts, faces]),
    }


def _join_neighbours(plan: BlockPlan, block: Triple, sidecar: Sidecar) -> None:
    """Join those faces for which this block was the last one missing."""
    after = [plan.after(block, axis) for axis in range(3)]
    for joined in (block, *(neighbour for neighbour in after if neighbour is not None)):
        needed = [plan.before(joined, axis) for axis in range(3)]
        if all(sidecar.has(BORDERS, other) for other in (joined, *needed) if other is not None):
            join_block(plan, joined, sidecar)


def across(plan: BlockPlan, block: Triple, sidecar: Sidecar, *names: str) -> Arrays:
    """What `join_block` has found, by name; it is done now if it was not.

    Raises:
        DecodingError: if the block, or one of those before it, was not cut.
    """
    join_block(plan, block, sidecar)
    return sidecar.load(CONTACTS, block, *names)


def join_block(plan: BlockPlan, block: Triple, sidecar: Sidecar) -> None:
    """Collect links and contacts across the faces to the blocks before this one, which must be cut too.

    Links are int64 (2, n) and contacts int64 (5, n): border fragment there, here, and for contacts sum, count and face.

    Raises:
        DecodingError: if one of the blocks was not cut.
    """
    if sidecar.has(CONTACTS, block):
        return
    own = sidecar.load(BORDERS, block)
    box = plan.box(block)
    found: Arrays = {}
    many = np.zeros(3, np.int64)
    for axis, name in enumerate(AXES):
        neighbour = plan.before(block, axis)
        if neighbour is None:
            continue
        here = own[f"first_{name}"].astype(np.int64) - 1
        beyond = sidecar.load(BORDERS, neighbour, f"last_{name}", f"leads_after_{name}")
        there = beyond[f"last_{name}"].astype(np.int64) - 1
        links, both = own[f"leads_before_{name}"] | beyond[f"leads_after_{name}"], (here >= 0) & (there >= 0)
        shape = tuple(1 if a == axis else extent for a, extent in enumerate(box.shape))
        plane = Box(box.start, (box.start[0] + shape[0], box.start[1] + shape[1], box.start[2] + shape[2]))
        faces = 3 * plan.voxel_ids(plane, np.arange(here.size)).reshape(here.shape) + axis
        values = own[f"affinities_{name}"].astype(np.int64)
        apart = both & ~links
        contacts = _summed(*(column[apart] for column in (there, here, values, faces)))
        found[f"links_{name}"] = np.unique(np.stack([there[links], here[links]]), axis=1)
        found[f"contacts_{name}"], many[axis] = contacts, contacts.shape[1]
    sidecar.save(CONTACTS, block, {"many": many, **found})


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
