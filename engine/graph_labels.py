"""Segmentations of a merge tree that a run has kept, at any threshold up to that of the tree, without merging again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgnet.engine.blockwise_run import decode_by_threads, segment_counts
from fgnet.engine.decoding_crew import Crew
from fgnet.engine.decoding_job import DecodingJob, StoredLabels
from fgnet.engine.decoding_process import DecodingProcess
from fgnet.engine.foreign_output import refuse_foreign
from fgnet.engine.own_input import refuse_own_graph
from fgnet.engine.run_continuation import continues, created_anew, has_chunks
from fgnet.engine.run_decoding import Progress
from fgnet.engine.run_journal import RunJournal
from fgnet.engine.run_outputs import (
    AFFINITIES_GROUP,
    GROUPS,
    drop_decoding,
    open_others,
    pieces_folder,
    threshold_group,
)
from fgnet.engine.run_record import write_record
from fgnet.postproc.blockwise_graph import SavedTree, load_graph
from fgnet.postproc.blockwise_plan import require_within
from fgnet.postproc.sidecar import PLAN
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.output_store import ZarrFormat
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_labels, reopen
from fgnet.volumes.zarr_source import is_unfinished


@dataclass(frozen=True)
class GraphOptions:
    """What is made of a merge tree.

    Attributes:
        output: the Zarr store to create; its root is the segmentation at the first threshold.
        thresholds: scores, 0 to 1, up to that of the tree; those of the others lie in `thresholds/T`.
        min_size: voxels below which a segment becomes background.
        threads: blocks at a time; all cores by default.
        crew: processes that do the work; threads by default.
        zarr_format: 3 (OME-NGFF 0.5) or 2 (0.4).
        overwrite: whether an earlier output is replaced.
        resume: whether one that was not finished is gone on with.
    """

    output: Path
    thresholds: tuple[float, ...]
    min_size: int = 0
    threads: int | None = None
    crew: Crew | None = None
    zarr_format: ZarrFormat = 3
    overwrite: bool = False
    resume: bool = False


@dataclass(frozen=True)
class LabelledGraph:
    """What was made: voxels of the volume, and how many segments at each threshold."""

    voxels: int
    segments: list[int]


def label_graph(
    graph: Path, options: GraphOptions, *, progress: Progress, stop: Callable[[], bool] = lambda: False
) -> LabelledGraph:
    """Write segmentations of a kept merge tree as OME-NGFF labels; nothing is watershed or merged again.

    Args:
        graph: of `fgnet-run --save-graph`.
        options: what to make of it.
        progress: told the stage, how many of its units are done, and of how many.
        stop: asked every now and then whether to stop, where processes do the work.

    Raises:
        DecodingError: it is no merge tree, or ends below a threshold.
        OutputError: the output exists, is or lies in the merge tree, is being written by another run, or cannot be
            written.
        AlreadyCompleteError: there is nothing to continue.
    """
    refuse_own_graph(options.output, graph)
    refuse_foreign(options.output, overwrite=options.overwrite)
    tree = load_graph(graph)
    for threshold in options.thresholds:
        require_within(threshold, tree.plan.options.highest)
    wanted: dict[str, Any] = {
        "merge tree": tree.describe(),
        "thresholds": list(options.thresholds),
        "min_size": options.min_size,
        "zarr format": options.zarr_format,
    }
    with RunJournal(options.output, anew=options.overwrite) as journal:
        writers = _open(journal, tree, options, wanted)
        job = _job(graph, tree, options)
        if options.crew is None:
            decode_by_threads(job, options.threads, progress)
        else:
            with DecodingProcess(job, options.crew) as process:
                process.wait(progress, stop)
        counts = segment_counts(job)
        for writer in writers:
            writer.build_pyramid()
        # First: what opens as complete has a record.
        write_record(options.output, {"identity": wanted, "graph": str(graph), "segments": counts})
        for writer in reversed(writers):
            writer.finish()
        drop_decoding(options.output)
        journal.remove()
    return LabelledGraph(math.prod(tree.plan.shape), counts)


def _open(
    journal: RunJournal, tree: SavedTree, options: GraphOptions, wanted: dict[str, Any]
) -> list[MultiscaleWriter]:
    output, shape = options.output, tree.plan.shape
    attributes: dict[str, Any] = dict(tree.group.attrs)
    space, name = attributes.get("space"), attributes.get("name")
    labels: dict[str, Any] = {
        "shape": shape,
        "space": Space((1, 1, 1), known=False) if space is None else Space(**space),
        "name": None if name is None else str(name),
    }
    # An output without a journal holds nothing that is worth keeping: another try is cheap.
    if options.resume and continues(
        journal, output, wanted, {}, has_pieces=lambda: False, clean_up=lambda: drop_decoding(output)
    ):
        root = reopen(output, dtype="uint64", axes="zyx", method="mode", **labels)
        return [root, *open_others(output, options.thresholds[1:], options.zarr_format, **labels)]
    # Begun, but not as far as its journal: nothing is lost by making it anew.
    holds = (has_chunks(output, group) for group in (None, AFFINITIES_GROUP))
    empty = options.resume and is_unfinished(output) and not any(holds)
    with created_anew(journal, output, overwrite=options.overwrite) as forget:
        root = create_labels(
            output,
            zarr_format=options.zarr_format,
            overwrite=options.overwrite or empty,
            replaces=GROUPS,
            first=forget,
            **labels,
        )
        others = open_others(output, options.thresholds[1:], options.zarr_format, **labels)
    journal.begin(wanted)
    return [root, *others]


def _job(graph: Path, tree: SavedTree, options: GraphOptions) -> DecodingJob:
    folder = pieces_folder(options.output, tree.describe())
    if not (folder / PLAN).is_file():
        drop_decoding(options.output)
    groups = [None, *map(threshold_group, options.thresholds[1:])]
    outputs = tuple(StoredLabels(options.output, group, tree.plan.shape) for group in groups)
    return DecodingJob(
        folder=folder,
        outputs=outputs,
        names=tuple(output.name() for output in outputs),
        options=replace(
            tree.plan.options,
            thresholds=options.thresholds,
            min_size=options.min_size,
            tree_threshold=tree.plan.options.highest,
        ),
        graph=graph,
    )
