"""The whole way of a volume: gray -> affinities -> segmentation -> OME-Zarr, streamed, and continued after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fgnet.engine.blockwise_run import refuse_graph
from fgnet.engine.foreign_output import refuse_foreign
from fgnet.engine.masked_affinities import StoredMask
from fgnet.engine.network_grid import NetworkGrid
from fgnet.engine.own_input import refuse_own_input
from fgnet.engine.run_continuation import clean_up, open_run
from fgnet.engine.run_decoding import Progress, heeding, open_decoding
from fgnet.engine.run_identity import NETWORK_VOXEL_SIZE, identity
from fgnet.engine.run_journal import RunJournal
from fgnet.engine.run_mask import RunMask
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import JournaledSink, RunOutputs
from fgnet.engine.run_plan import RunPlan, make_plan
from fgnet.engine.run_record import write_record
from fgnet.engine.runner import Runner
from fgnet.engine.streaming import RunStoppedError, StreamOptions, StreamState, stream
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.reading import Volume, check_gray, read_gray
from fgnet.volumes.writing import CHUNKS

Report = Callable[[str, StreamState], None]
"""Called with the phase that a run is in, and how the streaming of affinities is or was doing."""


@dataclass(frozen=True, eq=False)
class Section:
    """The middle section of what a run made, for a picture.

    Attributes:
        gray: (y, x) uint8.
        affinities: (3, y, x) uint8.
        segmentation: (y, x) uint64; None without a decoder.
    """

    gray: npt.NDArray[np.uint8]
    affinities: npt.NDArray[np.uint8]
    segmentation: npt.NDArray[np.uint64] | None


@dataclass(frozen=True, eq=False)
class Run:
    """What a run made.

    Attributes:
        plan: what was to be done.
        identity: what the affinities depend on.
        resumed: chunks that were there already.
        streaming: how the streaming of affinities went.
        segments: how many, of each threshold; None without a decoder.
        section: the middle one, where it was asked for.
        seconds: of each phase.
    """

    plan: RunPlan
    identity: dict[str, Any]
    resumed: int
    streaming: StreamState
    segments: list[int] | None
    section: Section | None
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class GrayVolume:
    """A volume as a source of uint8 gray."""

    volume: Volume
    rescale: tuple[float, float] | None = None

    @property
    def shape(self) -> Triple:
        """Extent (z, y, x) in voxels."""
        return as_triple(self.volume.shape, "shape")

    @property
    def chunk_depth(self) -> int | None:
        """Sections that are decoded together."""
        return None if self.volume.chunks is None else self.volume.chunks[-3]

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        """The box's values."""
        return read_gray(self.volume, box, rescale=self.rescale)


def plan_run(volume: Volume, patch: Triple, options: RunOptions, *, shares: int = 1) -> RunPlan:
    """What a run will do; nothing is opened for writing.

    Raises:
        VolumeError: gray that is not 8-bit, and no range to rescale.
        GeometryError: a region, stride or memory that does not do.
    """
    check_gray(volume, rescale=options.rescale)
    return make_plan(
        as_triple(volume.shape, "shape"),
        patch,
        stride=options.stride,
        region=options.box,
        chunk=CHUNKS,
        memory=options.memory,
        shares=shares,
        blending=options.blending,
    )


@dataclass(frozen=True, eq=False)
class StreamJob:
    """The streaming part of a run, for whoever does it.

    Attributes:
        plan: of the run.
        volume: gray.
        mask: where the tissue is.
        options: of the run.
        outputs: that finished chunks go to.
        journal: of the run.
        progress: to be told after each block.
        stop: to be asked before each block.
        grid: on which volume and mask are views, for processes that open them anew; None where they are not.
    """

    plan: RunPlan
    volume: Volume
    mask: Volume | None
    options: RunOptions
    outputs: RunOutputs
    journal: RunJournal
    progress: Callable[[StreamState], None]
    stop: Callable[[], bool]
    grid: NetworkGrid | None = None


class Streamer(Protocol):
    """Does the streaming part of runs.

    Attributes:
        patch: (z, y, x) voxels of a block.
        shares: into how many parts it cuts a run.
        identity: which network it is and what runs it; a run is only continued by the same.
    """

    patch: Triple
    shares: int
    identity: dict[str, Any]

    def __call__(self, job: StreamJob) -> StreamState:
        """Compute all chunks that the journal has not."""
        ...


class OneProcess:
    """Streams through a runner in this process.

    Args:
        runner: the network.
        identity: which network it is and what runs it.
    """

    shares = 1

    def __init__(self, runner: Runner, identity: dict[str, Any] | None = None) -> None:
        self.patch, self.identity = runner.patch, identity or {}
        self._runner = runner

    def __call__(self, job: StreamJob) -> StreamState:
        """Compute all chunks that the journal has not."""
        tissue = None if job.mask is None else RunMask(job.mask, job.plan.grid.volume)
        return stream(
            job.plan,
            GrayVolume(job.volume, job.options.rescale),
            self._runner,
            JournaledSink(job.outputs.affinities, job.journal, job.plan.region, tissue),
            StreamOptions(tissue, frozenset(job.journal.done), stop=job.stop, progress=job.progress),
        )


def segment_volume(
    volume: Volume,
    streamer: Streamer,
    options: RunOptions,
    *,
    mask: Volume | None = None,
    report: Report = lambda *_: None,
    decoded: Progress = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Segment a region of a volume and write it as OME-NGFF labels.

    Options are checked before an earlier output is replaced. The output is created before anything is computed, so
    that one that cannot be written is refused at once; it opens as an image only when it is complete.

    Affinities go to the output chunk by chunk, each noted in a journal beside it. A run that was killed is continued
    by the same call with `options.resume`, and gives the same bytes.

    Args:
        volume: gray (z, y, x).
        streamer: makes the affinities.
        options: what to do.
        mask: where the tissue is; everywhere by default. Labels and affinities are 0 elsewhere.
        report: told about progress.
        decoded: told the stage of the blockwise decoder, how many of its units are done, and of how many.
        stop: asked before each block whether to stop.

    Raises:
        VolumeError, GeometryError, DecodingError, OutputError: as said there. Decoding processes that fail while
            affinities are made stop these after the block in hand.
        RunStoppedError: `stop` said so.
        AlreadyCompleteError: there is nothing to continue.
    """
    plan = plan_run(volume, streamer.patch, options, shares=streamer.shares)
    if mask is not None:
        RunMask(mask, plan.grid.volume)  # refuses what does not fit
    named = identity(
        plan,
        volume,
        rescale=options.rescale,
        mask=mask,
        network=streamer.identity,
        zarr_format=options.zarr_format,
    )
    # Written before the output opens as complete, so that what does has one; whoever has more to say does so over it.
    record = {"identity": named, "decoding": options.wanted}
    clock, seconds = time.perf_counter, dict[str, float]()
    refuse_own_input(options.output, volume, mask)
    refuse_graph(options)
    refuse_foreign(options.output, overwrite=options.overwrite, rescales=NETWORK_VOXEL_SIZE in streamer.identity)
    tissue = None if mask is None else StoredMask.of(mask, plan.grid.volume, plan.region)
    with RunJournal(options.output, anew=options.overwrite) as journal:
        outputs = open_run(journal, plan, volume, options, named=named, wanted=options.wanted)
        with open_decoding(outputs, options, named, plan, replaced=journal.tree, mask=tissue) as decoding:
            started = clock()
            with heeding(decoding, stop) as over:
                job = StreamJob(plan, volume, mask, options, outputs, journal, lambda s: report("affinities", s), over)
                state = streamer(job)
                seconds["affinities"] = clock() - started
                _heed(over)
            if options.save_affinities or outputs.segmentation is None:
                report("pyramid", state)
                started = clock()
                outputs.affinities.build_pyramid()
                if outputs.segmentation is None:
                    write_record(options.output, record)
                outputs.affinities.finish()
                seconds["pyramid"] = clock() - started

            _heed(stop)
            segments = None
            if decoding is not None:
                report("agglomeration", state)
                started = clock()
                segments = decoding.segments(decoded, stop)
                seconds["decode"] = clock() - started
                _heed(stop)
        if outputs.segmentation is not None:
            report("writing", state)
            started = clock()
            for segmentation in outputs.segmentations:
                segmentation.build_pyramid()
            seconds["write"] = clock() - started
            write_record(options.output, record)
            for segmentation in reversed(outputs.segmentations):
                segmentation.finish()
        section = _middle_section(outputs, GrayVolume(volume, options.rescale), plan) if options.section else None
        clean_up(options)
        journal.remove()
    return Run(plan, named, len(journal.done), state, segments, section, seconds)


def _heed(stop: Callable[[], bool]) -> None:
    """Stop between two phases, if that was asked for."""
    if stop():
        raise RunStoppedError("stopped on request; what is finished is kept", remedy="--resume continues it")


def _middle_section(outputs: RunOutputs, source: GrayVolume, plan: RunPlan) -> Section:
    depth, rows, columns = plan.region.shape
    inside = Box((depth // 2, 0, 0), (depth // 2 + 1, rows, columns))
    labels = None if outputs.segmentation is None else outputs.segmentation.read(inside)[0]
    return Section(source.gray(inside.shift(plan.region.start))[0], outputs.affinities.read(inside)[:, 0], labels)
