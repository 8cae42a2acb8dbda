"""What do the segments of all blocks become when they are put together?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fgnet.postproc.agglomeration import agglomerate
from fgnet.postproc.blockwise_plan import BlockPlan
from fgnet.postproc.blockwise_steps import CONTACTS, ids_step, pieces_step
from fgnet.postproc.region_graph import Ints, merge_graphs
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import AXES, Triple


def merge_blocks(plan: BlockPlan, threshold: int, sidecar: Sidecar) -> None:
    """Merge what is open in all blocks, and number the segments in the order of their first voxels.

    Args:
        plan: of the volume.
        threshold: number of the threshold among the options.
        sidecar: in which every block was cut and joined.

    Raises:
        DecodingError: if a block was not cut or joined, or there are too many open segments for one step.
    """
    blocks = list(plan)
    if all(sidecar.has(ids_step(threshold), block) for block in blocks):
        return
    pieces, voxels, first, closed = [], [], [], []
    starts, total = {}, 0
    for block in blocks:
        piece = sidecar.load(pieces_step(threshold), block)
        many = int(piece["open"][1])
        # The segment of number 1 in the block becomes node `total`.
        starts[block] = total - 1
        total += many
        pieces.append(_shifted(piece["contacts"], starts[block], starts[block]))
        voxels.append(piece["voxels"][1 : many + 1])
        first.append(piece["first"][1 : many + 1])
        closed.append(piece["first"][many + 1 :][piece["voxels"][many + 1 :] >= plan.options.min_size])
    if total >= 2**31:
        raise DecodingError(f"{total} segments reach over blocks", remedy="choose larger blocks")
    linked = [np.empty((2, 0), np.int64)]
    for block in blocks:
        across = sidecar.load(CONTACTS, block)
        for axis, name in enumerate(AXES):
            neighbour = plan.before(block, axis)
            if neighbour is not None:
                linked.append(across[f"links_{name}"] + np.array([[starts[neighbour]], [starts[block]]]))
                pieces.append(_shifted(across[f"contacts_{name}"], starts[neighbour], starts[block]))
    count, nodes = _united(total, np.concatenate(linked, axis=1))
    merged = [(nodes[piece[0]], nodes[piece[1]], piece[2], piece[3], piece[4]) for piece in pieces]
    del pieces
    graph = merge_graphs(count, merged)
    del merged
    roots = agglomerate(graph, plan.options.thresholds[threshold]).roots[nodes]
    del graph
    sizes, lowest = np.concatenate(voxels), np.concatenate(first)
    ids, closed_ids = _numbered(plan.options.min_size, roots, sizes, lowest, np.concatenate(closed))
    _save_ids(plan, threshold, sidecar, starts, ids, closed_ids)


def _shifted(contacts: Ints, there: int, here: int) -> Ints:
    contacts[0] += there
    contacts[1] += here
    return contacts


def _united(total: int, links: Ints) -> tuple[int, npt.NDArray[np.int64]]:
    """How many nodes are left when linked ones are one, and which one each has become."""
    if not total:
        return 0, np.empty(0, np.int64)
    pairs = coo_array((np.ones(links.shape[1], np.bool_), (links[0], links[1])), shape=(total, total))
    count, nodes = connected_components(pairs, directed=False)
    return int(count), nodes.astype(np.int64)


def _numbered(
    min_size: int, roots: Ints, voxels: Ints, first: Ints, closed: Ints
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Ids of the open segments, one per entry of roots, and of the closed ones; by first voxels, 0 for small ones."""
    sizes = np.zeros(roots.size, np.int64)
    np.add.at(sizes, roots, voxels)
    lowest = np.full(roots.size, np.iinfo(np.int64).max)
    np.minimum.at(lowest, roots, first)
    stays = np.flatnonzero((sizes > 0) & (sizes >= min_size))
    order = np.argsort(np.concatenate([lowest[stays], closed]))
    numbers = np.empty(order.size, np.uint64)
    numbers[order] = np.arange(1, order.size + 1, dtype=np.uint64)
    ids = np.zeros(roots.size, np.uint64)
    ids[stays] = numbers[: stays.size]
    return ids[roots], numbers[stays.size :]


def _save_ids(
    plan: BlockPlan,
    threshold: int,
    sidecar: Sidecar,
    starts: dict[Triple, int],
    open_ids: npt.NDArray[np.uint64],
    closed_ids: npt.NDArray[np.uint64],
) -> None:
    """Give each block the id of each of its segments."""
    used = 0
    for block, start in starts.items():
        piece = sidecar.load(pieces_step(threshold), block)
        many = int(piece["open"][1])
        ids = np.zeros(piece["voxels"].size, np.uint64)
        ids[1 : many + 1] = open_ids[start + 1 : start + 1 + many]
        stays = many + 1 + np.flatnonzero(piece["voxels"][many + 1 :] >= plan.options.min_size)
        ids[stays] = closed_ids[used : used + stays.size]
        used += stays.size
        sidecar.save(ids_step(threshold), block, {"ids": ids})
