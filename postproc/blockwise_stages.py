"""What is the work of a decoding, in pieces that any scheduler can hand out?

Stages are done one after the other. The units of a stage may be done in any order, by any process that sees the
sidecar, several at a time, and more than once: each leaves whole files when it is done, and is skipped from then on.

1. cut: each block's fragments, their contacts, what these merge to within it; and its faces once neighbours are cut.
2. measure-k and merge-k: what is open in blocks is put together in groups of 2 x 2 x 2, then in groups of these, as
   long as there is more than is put together at once; and at last, or at once, for the whole volume.
3. segments-k: segments at the thresholds asked for, and their voxels; number: their order; ids-k: each group, and then
   each block, is told what it needs to know of that.
4. unmark: what was noted of outputs that held other labels is forgotten; write: labels are looked up and written.

All of it is named in `stages`. Levels that are not gone through have units too, which do nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from fgnet.postproc.blockwise_labels import Labelling, find_segments
from fgnet.postproc.blockwise_levels import grid, places, top_level
from fgnet.postproc.blockwise_merge import measure_level, merge_level
from fgnet.postproc.blockwise_numbers import block_labels, hand_down, number_layer
from fgnet.postproc.blockwise_plan import AffinitySource, BlockPlan, Sink
from fgnet.postproc.blockwise_steps import cut_block
from fgnet.postproc.blockwise_tree import MergeTree, SidecarTree
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box, Triple


@dataclass(frozen=True)
class Stage:
    """Work that is done once the stages before it are.

    Attributes:
        name: for messages, and to find the stage in another process.
        grid: number of units (z, y, x).
        work: does the unit at a place of the grid; can be pickled if the source and the sinks can.
    """

    name: str
    grid: Triple
    work: Callable[[Triple], None]

    def __iter__(self) -> Iterator[Triple]:
        return places(Box.from_shape(self.grid))


def tree_stages(plan: BlockPlan, sidecar: Sidecar, source: AffinitySource, *, memory: int | None = None) -> list[Stage]:
    """The stages that make a merge tree of affinities; nothing is read or written yet.

    Args:
        plan: of the volume.
        sidecar: claimed with the plan's description.
        source: of the affinities.
        memory: bytes for putting pieces together, the same for all workers; None for no limit. Groups are made for
            less than that too, see `blockwise_merge.CONTACTS_AT_ONCE`.
    """
    top = top_level(plan)
    found = [Stage("cut", plan.counts, partial(_cut, plan, source, sidecar))]
    for level in range(1, top + 1):
        if level < top:
            work = partial(measure_level, plan, level - 1, memory, sidecar)
            found.append(Stage(f"measure-{level - 1}", (1, 1, 1), partial(_once, work)))
        merge = partial(merge_level, plan, level, memory, sidecar)
        found.append(Stage(f"merge-{level}", grid(plan, level), merge))
    return found


def label_stages(
    tree: MergeTree,
    sidecar: Sidecar,
    labellings: Sequence[Labelling],
    sinks: Sequence[Sink],
    *,
    outputs: Sequence[str] | None = None,
) -> list[Stage]:
    """The stages that write segmentations of a merge tree; nothing is read or written yet.

    Args:
        tree: finished by the time the first stage is done.
        sidecar: for intermediate results; may be that of the tree.
        labellings: thresholds and minimum sizes.
        sinks: one per labelling.
        outputs: what tells the output behind each sink from any other, for example its path and when it was made; what
            was written there is not written again. None writes everything each time.

    Raises:
        DecodingError: if there are not as many sinks or outputs as labellings.
    """
    for name, given in (("sinks", sinks), ("outputs", outputs)):
        if given is not None and len(given) != len(labellings):
            raise DecodingError(
                f"there are {len(given)}", where=name, remedy=f"give one per threshold: {len(labellings)}"
            )
    plan = tree.plan
    top = top_level(plan)
    common = tree, tuple(labellings), sidecar
    found = [Stage(f"segments-{level}", grid(plan, level), partial(_find, *common, level)) for level in range(top + 1)]
    found.append(Stage("number", (plan.counts[0], 1, 1), partial(_number, *common)))
    found += [Stage(f"ids-{level}", grid(plan, level), partial(_hand, *common, level)) for level in range(top, 0, -1)]
    marks = None if outputs is None else tuple(hashlib.sha256(output.encode()).hexdigest()[:16] for output in outputs)
    if marks is not None:
        found.append(Stage("unmark", (1, 1, 1), partial(_unmark, *common, marks)))
    found.append(Stage("write", plan.counts, partial(_write, *common, tuple(sinks), marks)))
    return found


def stages(
    plan: BlockPlan,
    sidecar: Sidecar,
    source: AffinitySource,
    sinks: Sequence[Sink],
    *,
    memory: int | None = None,
    outputs: Sequence[str] | None = None,
) -> list[Stage]:
    """All stages of a decoding, as `tree_stages` and `label_stages` for the thresholds of the plan.

    Raises:
        DecodingError: if there are not as many sinks or outputs as thresholds.
    """
    labellings = [Labelling(threshold, plan.options.min_size) for threshold in plan.options.thresholds]
    labels = label_stages(SidecarTree(plan, sidecar), sidecar, labellings, sinks, outputs=outputs)
    return tree_stages(plan, sidecar, source, memory=memory) + labels


def _cut(plan: BlockPlan, source: AffinitySource, sidecar: Sidecar, block: Triple) -> None:
    cut_block(plan, block, source, sidecar)


def _once(work: Callable[[], None], unit: Triple) -> None:
    del unit
    work()


def _find(tree: MergeTree, labellings: Sequence[Labelling], sidecar: Sidecar, level: int, unit: Triple) -> None:
    for labelling in labellings:
        find_segments(tree, labelling, sidecar, level, unit)


def _number(tree: MergeTree, labellings: Sequence[Labelling], sidecar: Sidecar, unit: Triple) -> None:
    for labelling in labellings:
        number_layer(tree, labelling, sidecar, unit)


def _hand(tree: MergeTree, labellings: Sequence[Labelling], sidecar: Sidecar, level: int, unit: Triple) -> None:
    for labelling in labellings:
        hand_down(tree, labelling, sidecar, level, unit)


def _written(tree: MergeTree, labelling: Labelling, mark: str) -> str:
    return labelling.step(tree, f"written-{mark}")


def _unmark(
    tree: MergeTree, labellings: Sequence[Labelling], sidecar: Sidecar, marks: Sequence[str], unit: Triple
) -> None:
    """Forget that an output held other labels: from now on it does not, or not everywhere."""
    del unit
    for labelling, mark in zip(labellings, marks, strict=True):
        sidecar.forget(f"labels-*/written-{mark}", but=_written(tree, labelling, mark))


def _write(
    tree: MergeTree,
    labellings: Sequence[Labelling],
    sidecar: Sidecar,
    sinks: Sequence[Sink],
    marks: Sequence[str] | None,
    block: Triple,
) -> None:
    for number, (labelling, sink) in enumerate(zip(labellings, sinks, strict=True)):
        mark = None if marks is None else _written(tree, labelling, marks[number])
        if mark is not None and sidecar.has(mark, block):
            continue
        sink(tree.plan.box(block), block_labels(tree, labelling, sidecar, block))
        if mark is not None:
            sidecar.save(mark, block, {})
