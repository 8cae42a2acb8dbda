"""How is a volume of affinities decoded block by block, with the result of the whole volume?

The partition and its ids are the same for every block shape, halo, number of workers and order, whatever memory there
is. Here the stages (see `blockwise_stages`) run on the threads or processes of this machine; a scheduler may run the
same ones elsewhere.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blockwise_labels import Labelling
from fgnet.postproc.blockwise_plan import (
    AffinitySource,
    ArrayAffinities,
    ArraySink,
    BlockPlan,
    BlockwiseOptions,
    Sink,
    fitting_block,
    require_within,
)
from fgnet.postproc.blockwise_stages import Stage, label_stages, stages, tree_stages
from fgnet.postproc.blockwise_tree import MergeTree, SidecarTree
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.errors import DecodingError

__all__ = [
    "AffinitySource",
    "ArrayAffinities",
    "ArraySink",
    "BlockPlan",
    "BlockwiseOptions",
    "Sink",
    "decode_array",
    "decode_blockwise",
    "decode_in_turn",
    "fitting_block",
    "relabel",
]

Pool = Literal["threads", "processes"]


def decode_blockwise(
    source: AffinitySource,
    sinks: Sequence[Sink],
    options: BlockwiseOptions,
    *,
    folder: Path | None = None,
    identity: str = "",
    workers: int = 1,
    pool: Pool = "threads",
    memory: int | None = None,
    outputs: Sequence[str] | None = None,
) -> BlockPlan:
    """Decode a volume and write its segmentations, one per threshold.

    Memory is that of one block per worker, and of what reaches over blocks: some 250 bytes per contact there, with 0.01
    to 0.05 contacts per voxel of the volume, fewer with larger blocks; or as much as is given. With a folder, a
    decoding that was stopped goes on where it was, and what is written is the same.

    Args:
        source: of the affinities; with processes it is pickled.
        sinks: one per threshold, in their order; called from the workers, with processes pickled.
        options: of the decoder.
        folder: for intermediate results, 4 to 12 bytes per voxel; a temporary one by default. Yours to remove.
        identity: what tells these affinities from others, for example a hash; a folder refuses to be used for others.
        workers: how many blocks are worked on at a time.
        pool: what workers are. The kernels release the interpreter's lock, so that threads do unless sources or
            sinks hold it.
        memory: bytes that putting blocks together may take; where it takes more, they are put together in groups
            first, by all workers at a time. What is left for the last step may still exceed it.
        outputs: one per sink, what tells its output from any other; with a folder, blocks that were written there are
            not written again. None writes all of them.

    Returns:
        The blocks into which the volume was divided.

    Raises:
        DecodingError: if the affinities cannot be decoded, the folder is that of another decoding, a file cannot be
            written, or a worker was killed.
        GeometryError: if the volume is empty.
    """
    plan = BlockPlan(source.shape, options)
    _require_workers(workers)
    with _sidecar(folder) as sidecar:
        work = stages(plan, sidecar, source, sinks, memory=memory, outputs=outputs)
        sidecar.claim(plan.describe(identity))
        run_stages(work, workers, pool)
    return plan


def relabel(
    tree: MergeTree,
    sinks: Sequence[Sink],
    thresholds: Sequence[float],
    *,
    min_size: int = 0,
    folder: Path | None = None,
    workers: int = 1,
    pool: Pool = "threads",
    outputs: Sequence[str] | None = None,
) -> None:
    """Write segmentations of a merge tree at other thresholds or of another minimum size; nothing is merged again.

    Args:
        tree: `blockwise_tree.open_tree` of a decoding's folder, or `blockwise_graph.load_graph` of a saved one.
        sinks: one per threshold.
        thresholds: up to that of the tree.
        min_size: segments of fewer voxels become background.
        folder: for intermediate results, about 1 byte per voxel: a folder of this tree's labels, or a temporary one.
        workers: how many blocks are worked on at a time.
        pool: what workers are, as for `decode_blockwise`.
        outputs: as for `decode_blockwise`.

    Raises:
        DecodingError: if a threshold is above that of the tree, or as for `decode_blockwise`.
    """
    _require_workers(workers)
    for threshold in thresholds:
        require_within(threshold, tree.plan.options.highest)
    labellings = [Labelling(threshold, min_size) for threshold in thresholds]
    if folder is None and isinstance(tree, SidecarTree):
        run_stages(label_stages(tree, tree.sidecar, labellings, sinks, outputs=outputs), workers, pool)
        return
    with _sidecar(folder) as sidecar:
        work = label_stages(tree, sidecar, labellings, sinks, outputs=outputs)
        sidecar.claim(tree.describe())
        run_stages(work, workers, pool)


@contextmanager
def _sidecar(folder: Path | None) -> Iterator[Sidecar]:
    if folder is not None:
        yield Sidecar(Path(folder))
        return
    with tempfile.TemporaryDirectory(prefix="fgnet-decoding-") as temporary:
        yield Sidecar(Path(temporary), durable=False)


def _require_workers(workers: int) -> None:
    if workers < 1:
        raise DecodingError(f"it is {workers}", where="workers", remedy="give at least 1")


def run_stages(work: Sequence[Stage], workers: int, pool: Pool = "threads") -> None:
    """Do stages one after the other, on the threads or processes of this machine.

    Raises:
        DecodingError: if a worker was killed, or as for `decode_blockwise`.
    """
    try:
        with _executor(workers, pool) as executor:
            for stage in work:
                _each(executor, stage)
    except BrokenProcessPool as error:
        raise DecodingError(
            "a worker was killed",
            where=stage.name,
            remedy="take fewer workers or smaller blocks if memory ran out, and run again: what is finished is kept",
        ) from error


def _executor(workers: int, pool: Pool) -> Executor:
    if pool == "threads":
        return ThreadPoolExecutor(workers, "decode")
    # A fork would take over the locks of other threads, of numba and of TensorRT.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _each(executor: Executor, stage: Stage) -> None:
    futures = [executor.submit(stage.work, unit) for unit in stage]
    try:
        for future in futures:
            future.result()
    finally:
        # After an error, what has not begun need not.
        for future in futures:
            future.cancel()


def decode_array(
    affinities: npt.NDArray[np.uint8], options: BlockwiseOptions, *, workers: int = 1, memory: int | None = None
) -> list[npt.NDArray[np.uint64]]:
    """Decode affinities in memory; `decode_blockwise` for any other place.

    Args:
        affinities: (3, z, y, x) uint8.
        options: of the decoder.
        workers: threads.
        memory: bytes that putting blocks together may take.

    Returns:
        One (z, y, x) uint64 segmentation per threshold; ids 1, 2, ... in the order of first voxels, 0 is background.

    Raises:
        DecodingError: if the affinities cannot be decoded.
    """
    source = ArrayAffinities(affinities)
    results = [np.empty(source.shape, np.uint64) for _ in options.thresholds]
    sinks = [ArraySink(result) for result in results]
    decode_blockwise(source, sinks, options, workers=workers, memory=memory)
    return results


def decode_in_turn(
    affinities: npt.NDArray[np.uint8], options: BlockwiseOptions, *, workers: int = 1, memory: int | None = None
) -> Iterator[npt.NDArray[np.uint64]]:
    """The segmentations of `decode_array`, one after the other, with memory and disk for one of them.

    Args:
        affinities: as for `decode_array`.
        options: likewise.
        workers: likewise.
        memory: likewise.

    Returns:
        One (z, y, x) uint64 segmentation per threshold, always the same array: copy what is to outlive the next.

    Raises:
        DecodingError: if the affinities cannot be decoded.
    """
    _require_workers(workers)
    return _in_turn(ArrayAffinities(affinities), options, workers, memory)


def _in_turn(
    source: ArrayAffinities, options: BlockwiseOptions, workers: int, memory: int | None
) -> Iterator[npt.NDArray[np.uint64]]:
    plan, result = BlockPlan(source.shape, options), np.empty(source.shape, np.uint64)
    with _sidecar(None) as sidecar:
        run_stages(tree_stages(plan, sidecar, source, memory=memory), workers)
        tree = SidecarTree(plan, sidecar)
        for threshold in options.thresholds:
            labelling = Labelling(threshold, options.min_size)
            run_stages(label_stages(tree, sidecar, [labelling], [ArraySink(result)]), workers)
            sidecar.forget("labels-*")
            yield result
