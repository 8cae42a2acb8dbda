"""Which segments are there at a threshold, how large are they, and where do they begin?

Each unit, blocks first, connects its nodes by the merges above the threshold's floor. Segments that hold the node of an
open one go on to the next level; the others are closed: all of their voxels are known, and those that are large enough
get a number later. Files are named by threshold and minimum size, so that those of others are never taken for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fgnet.postproc.agglomeration import affinity_floor
from fgnet.postproc.blockwise_levels import places, span
from fgnet.postproc.blockwise_plan import BlockPlan, require_within
from fgnet.postproc.blockwise_tree import MergeTree
from fgnet.postproc.merge_tree import Ints, components, gather
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Triple


@dataclass(frozen=True)
class Labelling:
    """One segmentation of a merge tree.

    Args:
        threshold: score in [0, 1] up to that of the tree: contacts merge while 1 - mean affinity < threshold.
        min_size: segments of fewer voxels become background; 0 and 1 keep everything.

    Raises:
        DecodingError: if one is out of range.
    """

    threshold: float
    min_size: int = 0

    def __post_init__(self) -> None:
        affinity_floor(self.threshold)
        if self.min_size < 0:
            raise DecodingError(f"it is {self.min_size}", where="min_size", remedy="give 0 or more voxels")

    def step(self, tree: MergeTree, name: str) -> str:
        """Name of a step that depends on the threshold and the minimum size.

        Raises:
            DecodingError: if the threshold is above that of the tree.
        """
        require_within(self.threshold, tree.plan.options.highest)
        # How many levels there are decides what the nodes of the top are.
        levels = len(tree.levels)
        return f"labels-{affinity_floor(self.threshold)}-{self.min_size}-{levels}/{name}"


def segments_step(tree: MergeTree, labelling: Labelling, level: int) -> str:
    """Name of the segments within the units of a level."""
    return labelling.step(tree, f"segments-{level}")


def find_segments(tree: MergeTree, labelling: Labelling, sidecar: Sidecar, level: int, unit: Triple) -> None:
    """Connect the nodes of a unit, and measure what they become; if the tree has this level.

    Raises:
        DecodingError: if that was not done for its members, or the threshold is above that of the tree.
    """
    levels = tree.levels
    if level not in levels:
        return
    step = segments_step(tree, labelling, level)
    if sidecar.has(step, unit):
        return
    branch = tree.branch(level, unit)
    if level == 0:
        voxels, first = tree.extents(unit)
    else:
        below = levels[levels.index(level) - 1]
        handed = [
            sidecar.load(segments_step(tree, labelling, below), member, "open_voxels", "open_first")
            for member in places(span(tree.plan, level, unit, below))
        ]
        parts = [np.concatenate([piece[name] for piece in handed]) for name in ("open_voxels", "open_first")]
        voxels, first = gather(branch.nodes, branch.count, *parts)
    count, segments = components(branch.count, branch.merges.above(affinity_floor(labelling.threshold)))
    voxels, first = gather(segments, count, voxels, first)
    opened = segments[branch.opened]
    closed = voxels >= max(1, labelling.min_size)
    closed[opened] = False
    kept = np.flatnonzero(closed)
    kept = kept[np.argsort(first[kept])]
    found = {"segments": segments, "many": np.array([count]), "open": opened, "kept": kept}
    by_layer = dict(zip(layers(tree.plan, level, unit), _split(tree.plan, level, unit, first[kept]), strict=True))
    sidecar.save(
        step,
        unit,
        found
        | {"open_voxels": voxels[opened], "open_first": first[opened]}
        | {f"first_{layer}": places for layer, places in by_layer.items()},
    )


def layers(plan: BlockPlan, level: int, unit: Triple) -> range:
    """The layers of blocks, along z, that a unit spans."""
    blocks = span(plan, level, unit)
    return range(blocks.start[0], blocks.stop[0])


def _split(plan: BlockPlan, level: int, unit: Triple, first: Ints) -> list[Ints]:
    """Sorted numbers of voxels by the layer of blocks in which they lie."""
    size = plan.options.block[0] * plan.shape[1] * plan.shape[2]
    return np.split(first, np.searchsorted(first, [layer * size for layer in layers(plan, level, unit)][1:]))
