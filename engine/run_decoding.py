"""The segmentations of a run: by waterz, with the whole region in memory, or block by block from the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from fgnet.engine.blockwise_run import decode_by_threads, decoding_job, keep_graph, refuse_other_graph, segment_counts
from fgnet.engine.decoding_job import DecodingJob
from fgnet.engine.decoding_process import DecodingProcess
from fgnet.engine.masked_affinities import StoredMask
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import RunOutputs, drop_decoding
from fgnet.engine.run_plan import RunPlan
from fgnet.engine.streaming import RunStoppedError
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz, remove_small
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box
from fgnet.volumes.kept_memory import give_memory_back
from fgnet.volumes.multiscale_writer import MultiscaleWriter

Progress = Callable[[str, int, int], None]


class Decoding(Protocol):
    """The decoding of a run, from before its affinities are made."""

    def failure(self) -> DecodingError | None:
        """What the processes that follow the affinities have failed of so far, if they have."""
        ...

    def segments(self, progress: Progress, stop: Callable[[], bool]) -> list[int]:
        """Write the segmentations, once all affinities are there; how many segments each has.

        Args:
            progress: told the stage, how many of its units are done, and of how many.
            stop: asked every now and then whether to stop, where that is possible.
        """
        ...


@contextmanager
def open_decoding(
    outputs: RunOutputs,
    options: RunOptions,
    named: dict[str, Any],
    plan: RunPlan,
    *,
    replaced: dict[str, Any] | None = None,
    mask: StoredMask | None = None,
) -> Iterator[Decoding | None]:
    """Prepare the decoding of a run; worker processes, if there are to be any, begin with what is finished.

    Args:
        outputs: of the run.
        options: of the run.
        named: what the affinities depend on.
        plan: of the run.
        replaced: which merge tree may be replaced, see `blockwise_run.refuse_other_graph`.
        mask: outside of which labels are 0.

    Yields:
        The decoding, None where the run makes affinities only. Leaving the context ends its processes.

    Raises:
        OutputError: what is left of another decoding cannot be removed, or its merge tree is in the way.
    """
    if outputs.segmentation is None:
        yield None
        return
    if options.decoder == "waterz":
        # It says which blocks of the segmentation were written, and waterz is to write other labels there.
        drop_decoding(options.output)
        yield _Whole(outputs.affinities, outputs.segmentation, options, mask)
        return
    job = decoding_job(outputs, options, named, plan, mask)
    refuse_other_graph(job, options, replaced)
    if options.crew is None:
        yield _Blockwise(job, outputs, options, None, replaced)
        return
    with DecodingProcess(job, options.crew) as process:
        yield _Blockwise(job, outputs, options, process, replaced)


@contextmanager
def heeding(decoding: Decoding | None, stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Have affinities be made no further than up to the block in which their decoding fails.

    Args:
        decoding: of the run.
        stop: asked whether to stop for another reason.

    Yields:
        What is to be asked whether to stop.

    Raises:
        DecodingError: the decoding failed, and what was stopped by it said so by `RunStoppedError`.
    """
    if decoding is None:
        yield stop
        return
    try:
        yield lambda: stop() or decoding.failure() is not None
    except RunStoppedError as stopped:
        if failure := decoding.failure():
            raise failure from stopped
        raise


class _Whole:
    def __init__(
        self, affinities: MultiscaleWriter, segmentation: MultiscaleWriter, options: RunOptions, mask: StoredMask | None
    ) -> None:
        self._affinities, self._segmentation, self._options, self._mask = affinities, segmentation, options, mask

    def failure(self) -> None:
        return None

    def segments(self, progress: Progress, stop: Callable[[], bool]) -> list[int]:
        del progress, stop
        options = self._options
        count = decode_whole(
            self._affinities,
            self._segmentation,
            threshold=options.threshold,
            options=options.decoding,
            min_size=options.min_size,
            threads=options.threads or len(os.sched_getaffinity(0)),
            mask=self._mask,
        )
        return [count]


class _Blockwise:
    def __init__(
        self,
        job: DecodingJob,
        outputs: RunOutputs,
        options: RunOptions,
        process: DecodingProcess | None,
        replaced: dict[str, Any] | None,
    ) -> None:
        self._job, self._outputs, self._options, self._process = job, outputs, options, process
        self._replaced = replaced

    def failure(self) -> DecodingError | None:
        return None if self._process is None else self._process.failure()

    def segments(self, progress: Progress, stop: Callable[[], bool]) -> list[int]:
        if self._process is None:
            decode_by_threads(self._job, self._options.threads, progress)
        else:
            # What inference has freed is for the workers now.
            give_memory_back()
            self._process.wait(progress, stop)
        if self._outputs.segmentation is not None:
            keep_graph(self._job, self._options, self._outputs.segmentation, replaced=self._replaced)
        return segment_counts(self._job)


def decode_whole(
    affinities: MultiscaleWriter,
    segmentation: MultiscaleWriter,
    *,
    threshold: float,
    options: WaterzOptions,
    min_size: int,
    threads: int,
    mask: StoredMask | None = None,
) -> int:
    """Decode by waterz, in memory; see `fgnet.postproc.waterz_decoder`.

    Args:
        affinities: (3, z, y, x) uint8.
        segmentation: (z, y, x) uint64 to be written.
        threshold: score, 0 to 1.
        options: how waterz makes fragments and scores contacts.
        min_size: voxels below which a segment becomes background.
        threads: that make fragments of sections.
        mask: outside of which labels are 0.

    Returns:
        How many segments there are.

    Raises:
        DecodingError, OutputError: as said there.
    """
    give_memory_back()
    everything = Box.from_shape(affinities.shape[-3:])
    whole = affinities.read(everything)
    tissue = None if mask is None else mask.tissue(everything)
    (labels,) = decode_waterz(whole, [threshold], options, tissue=tissue, threads=threads)
    if min_size > 1:
        labels = remove_small(labels, min_size)
    labels = compact_ids(labels)
    segmentation.write(everything, labels)
    # Affinities and journal are deleted once the output is complete: after a power cut nothing else has them.
    segmentation.sync(everything)
    return int(labels.max())
