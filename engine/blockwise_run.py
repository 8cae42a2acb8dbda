"""The blockwise decoding of a run: what its job is, on threads of this process, and the merge tree that it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgnet.engine.decoding_job import DecodingJob, StoredLabels
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import RunOutputs, decoding_folder, threshold_group
from fgnet.engine.run_plan import RunPlan
from fgnet.postproc.blockwise_decoder import BlockPlan, BlockwiseOptions, fitting_block, run_stages
from fgnet.postproc.blockwise_graph import forget_unsaved, graph_plan, is_graph, load_graph, save_graph
from fgnet.postproc.blockwise_numbers import count_segments
from fgnet.postproc.blockwise_tree import SidecarTree
from fgnet.postproc.sidecar import PLAN
from fgnet.postproc.watershed import WatershedOptions
from fgnet.volumes.errors import DecodingError, OutputError
from fgnet.volumes.geometry import as_triple
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.output_store import explained


def decoding_job(outputs: RunOutputs, options: RunOptions, named: dict[str, Any], plan: RunPlan) -> DecodingJob:
    """The blockwise decoding of a run, whose affinities may still be in the making.

    What a kill has left in its folder is gone on with; what was left of other affinities, or does not reach as far, is
    removed.

    Args:
        outputs: of the run, with segmentations.
        options: of the run.
        named: what the affinities depend on.
        plan: of the run.

    Raises:
        OutputError: the folder cannot be removed.
    """
    shape = as_triple(outputs.affinities.shape[-3:], "shape")
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    watershed = WatershedOptions(flow=options.decoding.fragments)
    wanted = BlockwiseOptions(
        options.thresholds,
        block=fitting_block(shape, watershed),
        min_size=options.min_size,
        watershed=watershed,
        tree_threshold=options.tree_threshold,
    )
    folder = decoding_folder(options.output)
    with explained(folder):
        decoder = _continued(folder, BlockPlan(shape, wanted), digest)
        if decoder is None and folder.exists():
            shutil.rmtree(folder)
    groups = [None, *map(threshold_group, options.more_thresholds)]
    labels = tuple(StoredLabels(outputs.path, group, shape) for group in groups)
    return DecodingJob(
        folder=folder,
        outputs=labels,
        names=tuple(output.name() for output in labels),
        options=decoder or wanted,
        affinities=outputs.affinities.path / "0",
        identity=digest,
        memory=options.graph_memory or _share_of_memory(),
        output=outputs.path,
        run=plan,
    )


def _continued(folder: Path, plan: BlockPlan, identity: str) -> BlockwiseOptions | None:
    """The options with which what is in a folder is gone on with; None if it is of no use."""
    try:
        held = (folder / PLAN).read_text()
        before = float(json.loads(held)["options"]["tree_threshold"])
        # A tree that reaches higher gives the same segmentations.
        options = replace(plan.options, tree_threshold=before)
    except (OSError, ValueError, KeyError, TypeError, DecodingError):
        return None
    return options if BlockPlan(plan.shape, options).describe(identity) == held else None


def _share_of_memory() -> int:
    """Bytes for putting blocks together, unless told otherwise: a quarter of what the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def decode_by_threads(job: DecodingJob, workers: int | None, progress: Callable[[str, int, int], None]) -> None:
    """Do a decoding on threads of this process.

    Args:
        job: of whole affinities, or of a merge tree.
        workers: threads; all cores by default.
        progress: told the stage, how many of its units are done, and of how many.

    Raises:
        DecodingError, OutputError: as said in `fgnet.postproc.blockwise_decoder`.
    """
    work = job.stages()
    job.sidecar.claim(job.describe())
    for stage in work:
        units = math.prod(stage.grid)
        progress(stage.name, 0, units)
        run_stages([stage], workers or len(os.sched_getaffinity(0)))
        progress(stage.name, units, units)


def refuse_graph(options: RunOptions) -> None:
    """Refuse to keep a merge tree over something else, before anything is computed.

    Raises:
        OutputError: something is there that is not to be replaced, or is no merge tree; or it would lie in the output.
    """
    path = options.graph
    if path is None:
        return
    tree, output = path.resolve(), options.output.resolve()
    if tree == output or output in tree.parents or tree in output.parents:
        raise OutputError(
            "the merge tree cannot be the output, lie in it or hold it",
            where=path,
            remedy="give --save-graph a path of its own",
        )
    if not path.exists():
        return
    if not is_graph(path):
        raise OutputError("this exists already and is no merge tree", where=path, remedy="choose another path")
    if not (options.overwrite or options.resume):
        raise OutputError("a merge tree is there already", where=path, remedy="choose another path, or --overwrite")


def keep_graph(job: DecodingJob, path: Path, segmentation: MultiscaleWriter, *, overwrite: bool) -> None:
    """Keep the merge tree of a finished decoding; see `fgnet.postproc.blockwise_graph`.

    Args:
        job: the decoding.
        path: of the Zarr group.
        segmentation: whose name, voxel size and offset are kept with it.
        overwrite: whether another one that is there is replaced.

    Raises:
        DecodingError, OutputError: another one is there already, or it cannot be written.
    """
    tree = SidecarTree(job.plan, job.sidecar)
    if is_graph(path):
        if graph_plan(path) == json.loads(job.sidecar.claimed()):
            # A kill came between it and the end of the run, or another run has kept it.
            forget_unsaved(tree, path)
            return
        if overwrite:
            with explained(path):
                shutil.rmtree(path)
    space = segmentation.space
    where = {"voxel_size": space.voxel_size, "offset": space.offset, "known": space.known}
    attributes = {"name": segmentation.name, "space": where}
    save_graph(tree, path, attributes=attributes)


def segment_counts(job: DecodingJob) -> list[int]:
    """How many segments each output of a finished decoding has."""
    tree = load_graph(job.graph) if job.graph else SidecarTree(job.plan, job.sidecar)
    return [count_segments(tree, labelling, job.sidecar) for labelling in job.labellings]
