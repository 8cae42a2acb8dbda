"""How is a volume of affinities decoded block by block, with the result of the whole volume?

1. `cut_block`, each block: fragments, their contacts, and what these merge to within the block.
2. `join_block`, each block once those before it are cut: links and contacts across its faces.
3. `merge_blocks`: what reaches over blocks is merged, and segments are numbered.
4. Each block: its labels are looked up and written.

The partition and its ids are the same for every block shape, halo, number of workers and order. Here the steps run on
the threads or processes of this machine; a scheduler may run the same functions elsewhere.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blockwise_merge import merge_blocks
from fgnet.postproc.blockwise_plan import AffinitySource, ArrayAffinities, ArraySink, BlockPlan, BlockwiseOptions, Sink
from fgnet.postproc.blockwise_steps import block_labels, cut_block, join_block
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Triple

__all__ = [
    "AffinitySource",
    "ArrayAffinities",
    "ArraySink",
    "BlockPlan",
    "BlockwiseOptions",
    "Sink",
    "decode_array",
    "decode_blockwise",
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
) -> BlockPlan:
    """Decode a volume and write its segmentations, one per threshold.

    Memory is that of one block per worker, and of what reaches over blocks: some 250 bytes per contact there, with 0.01
    to 0.05 contacts per voxel of the volume, fewer with larger blocks. With a folder, a decoding that was stopped goes
    on where it was, and what is written is the same.

    Args:
        source: of the affinities; with processes it is pickled.
        sinks: one per threshold, in their order; called from the workers, with processes pickled.
        options: of the decoder.
        folder: for intermediate results, 4 to 12 bytes per voxel; a temporary one by default. Yours to remove.
        identity: what tells these affinities from others, for example a hash; a folder refuses to be used for others.
        workers: how many blocks are worked on at a time.
        pool: what workers are. The kernels release the interpreter's lock, so that threads do unless sources or
            sinks hold it.

    Returns:
        The blocks into which the volume was divided.

    Raises:
        DecodingError: if the affinities cannot be decoded, the folder is that of another decoding, a file cannot be
            written, or a worker was killed.
        GeometryError: if the volume is empty.
    """
    plan = BlockPlan(source.shape, options)
    if len(sinks) != len(options.thresholds):
        raise DecodingError(
            f"there are {len(sinks)} sinks", where="sinks", remedy=f"give one per threshold: {len(options.thresholds)}"
        )
    if workers < 1:
        raise DecodingError(f"it is {workers}", where="workers", remedy="give at least 1")
    if folder is not None:
        _decode(plan, source, sinks, Sidecar(Path(folder)), identity, workers, pool)
        return plan
    with tempfile.TemporaryDirectory(prefix="fgnet-decoding-") as temporary:
        _decode(plan, source, sinks, Sidecar(Path(temporary), durable=False), identity, workers, pool)
    return plan


def _decode(
    plan: BlockPlan,
    source: AffinitySource,
    sinks: Sequence[Sink],
    sidecar: Sidecar,
    identity: str,
    workers: int,
    pool: Pool,
) -> None:
    sidecar.claim(plan.describe(identity))
    numbers = range(len(plan.options.thresholds))
    try:
        with _executor(workers, pool) as executor:
            _each(executor, partial(_cut, plan, source, sidecar), plan)
            _each(executor, partial(_join, plan, sidecar), plan)
            list(executor.map(partial(_merge, plan, sidecar), numbers))
            for number in numbers:
                _each(executor, partial(write_block, plan, sidecar, number, sinks[number]), plan)
    except BrokenProcessPool as error:
        raise DecodingError(
            "a worker was killed",
            where=sidecar.folder,
            remedy="take fewer workers or smaller blocks if memory ran out, and run again: what is finished is kept",
        ) from error


def _executor(workers: int, pool: Pool) -> Executor:
    if pool == "threads":
        return ThreadPoolExecutor(workers, "decode")
    # A fork would take over the locks of other threads, of numba and of TensorRT.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _each(executor: Executor, work: Callable[[Triple], None], plan: BlockPlan) -> None:
    futures = [executor.submit(work, block) for block in plan]
    try:
        for future in futures:
            future.result()
    finally:
        # After an error, what has not begun need not.
        for future in futures:
            future.cancel()


def _cut(plan: BlockPlan, source: AffinitySource, sidecar: Sidecar, block: Triple) -> None:
    cut_block(plan, block, source, sidecar)


def _join(plan: BlockPlan, sidecar: Sidecar, block: Triple) -> None:
    join_block(plan, block, sidecar)


def _merge(plan: BlockPlan, sidecar: Sidecar, number: int) -> None:
    merge_blocks(plan, number, sidecar)


def write_block(plan: BlockPlan, sidecar: Sidecar, number: int, sink: Sink, block: Triple) -> None:
    """Write the finished labels of one block, for the threshold of this number.

    Raises:
        DecodingError: if the blocks were not merged at this threshold.
    """
    sink(plan.box(block), block_labels(block, number, sidecar))


def decode_array(
    affinities: npt.NDArray[np.uint8], options: BlockwiseOptions, *, workers: int = 1
) -> list[npt.NDArray[np.uint64]]:
    """Decode affinities in memory; `decode_blockwise` for any other place.

    Args:
        affinities: (3, z, y, x) uint8.
        options: of the decoder.
        workers: threads.

    Returns:
        One (z, y, x) uint64 segmentation per threshold; ids 1, 2, ... in the order of first voxels, 0 is background.

    Raises:
        DecodingError: if the affinities cannot be decoded.
    """
    source = ArrayAffinities(affinities)
    results = [np.empty(source.shape, np.uint64) for _ in options.thresholds]
    decode_blockwise(source, [ArraySink(result) for result in results], options, workers=workers)
    return results
