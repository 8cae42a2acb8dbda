"""Which number does each segment of a volume get?

1, 2, ... in the order of first voxels. A layer of blocks holds all voxels between its first and its last, so layers are
numbered one by one. Within a layer each row of voxels runs through several blocks: how many segments begin in each row,
and in the blocks before along it, tells where a block's own begin. So nothing is held but the rows of a layer, and the
segments that reach over blocks and begin there.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fgnet.postproc.blockwise_labels import Labelling, layers, segments_step
from fgnet.postproc.blockwise_levels import grid, places, span
from fgnet.postproc.blockwise_plan import BlockPlan
from fgnet.postproc.blockwise_tree import MergeTree
from fgnet.postproc.merge_tree import Ints
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.geometry import Box, Triple

Ids = npt.NDArray[np.uint64]


def number_layer(tree: MergeTree, labelling: Labelling, sidecar: Sidecar, unit: Triple) -> None:
    """Number the segments that begin in a layer of blocks, (layer, 0, 0), from 1 on.

    Raises:
        DecodingError: if the segments of a unit were not found.
    """
    plan, layer, done = tree.plan, unit[0], labelling.step(tree, "layers")
    files = [
        (level, above)
        for level in tree.levels
        for above in places(Box.from_shape(grid(plan, level)))
        if layer in layers(plan, level, above)
    ]
    steps = {level: _numbers(tree, labelling, level, layer) for level in tree.levels}
    if sidecar.has(done, unit) and all(sidecar.has(steps[level], above) for level, above in files):
        return
    over_blocks = {
        (level, above): _begins(tree, labelling, sidecar, level, above, layer) for level, above in files if level
    }
    first = np.concatenate(list(over_blocks.values()))
    order, bounds = _by_block(plan, first)
    rows = np.zeros(plan.box((layer, 0, 0)).shape[0] * plan.shape[1], np.int64)
    first_row = layer * plan.options.block[0] * plan.shape[1]
    _count(rows, first // plan.shape[2] - first_row)
    blocks = [block for level, block in files if level == 0]
    for block in blocks:
        _count(rows, _begins(tree, labelling, sidecar, 0, block, layer) // plan.shape[2] - first_row)
    total = int(rows.sum())
    # From here on, the number of the next segment that begins in a row.
    rows = np.cumsum(rows) - rows + 1
    numbers = np.zeros(first.size, np.uint64)
    for i, block in enumerate(blocks):
        others = order[bounds[i] : bounds[i + 1]]
        own = _begins(tree, labelling, sidecar, 0, block, layer)
        begins = np.concatenate([own, first[others]])
        ids = np.zeros(begins.size, np.uint64)
        _number(rows, begins // plan.shape[2] - first_row, np.argsort(begins), ids)
        numbers[others] = ids[own.size :]
        sidecar.save(steps[0], block, {"ids": ids[: own.size]})
    start = 0
    for (level, above), begins in over_blocks.items():
        sidecar.save(steps[level], above, {"ids": numbers[start : start + begins.size]})
        start += begins.size
    sidecar.save(done, unit, {"total": np.array(total)})


def _begins(tree: MergeTree, labelling: Labelling, sidecar: Sidecar, level: int, unit: Triple, layer: int) -> Ints:
    """First voxels, sorted, of the closed segments of a unit that begin in a layer."""
    name = f"first_{layer}"
    begins: Ints = sidecar.load(segments_step(tree, labelling, level), unit, name)[name]
    return begins


def _numbers(tree: MergeTree, labelling: Labelling, level: int, layer: int) -> str:
    return labelling.step(tree, f"numbers-{level}-{layer}")


def _by_block(plan: BlockPlan, first: Ints) -> tuple[Ints, Ints]:
    """The order of voxels by block, and where each block of the layer begins in it."""
    y, x = first // plan.shape[2] % plan.shape[1], first % plan.shape[2]
    columns = plan.counts[2]
    block = y // plan.options.block[1] * columns + x // plan.options.block[2]
    order = np.argsort(block, kind="stable")
    return order, np.searchsorted(block[order], np.arange(plan.counts[1] * columns + 1))


@numba.njit(cache=True, nogil=True)
def _count(rows: npt.NDArray[Any], places: npt.NDArray[Any]) -> None:
    for place in places:
        rows[place] += 1


@numba.njit(cache=True, nogil=True)
def _number(rows: npt.NDArray[Any], places: npt.NDArray[Any], order: npt.NDArray[Any], ids: npt.NDArray[Any]) -> None:
    for i in order:
        ids[i] = rows[places[i]]
        rows[places[i]] += 1


def count_segments(tree: MergeTree, labelling: Labelling, sidecar: Sidecar) -> int:
    """How many segments a volume has, once all its layers are numbered."""
    return _before(tree, labelling, sidecar, tree.plan.counts[0])


def _before(tree: MergeTree, labelling: Labelling, sidecar: Sidecar, layer: int) -> int:
    """How many segments begin in the layers before one."""
    done = labelling.step(tree, "layers")
    return sum(int(sidecar.load(done, (z, 0, 0))["total"]) for z in range(layer))


def hand_down(tree: MergeTree, labelling: Labelling, sidecar: Sidecar, level: int, unit: Triple) -> None:
    """Tell the members of a unit the ids of their open segments, if the tree has this level.

    Raises:
        DecodingError: if layers were not numbered, or the unit was not told the ids of its own open segments.
    """
    levels = tree.levels
    if level not in levels:
        return
    below = levels[levels.index(level) - 1]
    step, members = labelling.step(tree, f"ids-{below}"), list(places(span(tree.plan, level, unit, below)))
    if all(sidecar.has(step, member) for member in members):
        return
    branch = tree.branch(level, unit)
    ids = node_ids(tree, labelling, sidecar, level, unit)[branch.nodes]
    for i, member in enumerate(members):
        sidecar.save(step, member, {"ids": ids[branch.starts[i] : branch.starts[i + 1]]})


def node_ids(tree: MergeTree, labelling: Labelling, sidecar: Sidecar, level: int, unit: Triple) -> Ids:
    """The final id of each node of a unit, 0 for background and what is too small: uint64 (nodes).

    Raises:
        DecodingError: if layers were not numbered, or the unit was not told the ids of its open segments.
    """
    piece = sidecar.load(segments_step(tree, labelling, level), unit, "segments", "many", "open", "kept")
    ids = np.zeros(int(piece["many"][0]), np.uint64)
    known = [np.empty(0, np.uint64)]
    for layer in layers(tree.plan, level, unit):
        numbers: Ids = sidecar.load(_numbers(tree, labelling, level, layer), unit)["ids"]
        known.append(numbers + np.uint64(_before(tree, labelling, sidecar, layer)))
    ids[piece["kept"]] = np.concatenate(known)
    if level != tree.levels[-1]:
        ids[piece["open"]] = sidecar.load(labelling.step(tree, f"ids-{level}"), unit)["ids"]
    handed: Ids = ids[piece["segments"]]
    return handed


def block_labels(tree: MergeTree, labelling: Labelling, sidecar: Sidecar, block: Triple) -> Ids:
    """The finished labels of a block.

    Returns:
        (z, y, x) uint64: 1, 2, ... over the whole volume in the order of first voxels; 0 is background.

    Raises:
        DecodingError: if the ids of its open segments are not known yet.
    """
    fragments = tree.fragments(block)
    labels = np.empty(fragments.shape, np.uint64)
    _look_up(fragments, node_ids(tree, labelling, sidecar, 0, block), labels)
    return labels


@numba.njit(cache=True, nogil=True)
def _look_up(fragments: npt.NDArray[Any], table: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    source, target = fragments.reshape(-1), labels.reshape(-1)
    for i in range(source.size):
        target[i] = table[source[i]]
