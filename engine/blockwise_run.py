"""The blockwise decoding of a run: what its job is, on threads of this process, and the merge tree that it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgnet.engine.decoding_job import DecodingJob, StoredLabels
from fgnet.engine.masked_affinities import StoredMask
from fgnet.engine.run_journal import journal_path
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import (
    RunOutputs,
    decoding_folder,
    drop_decoding,
    network_store,
    pieces_folder,
    threshold_group,
)
from fgnet.engine.run_plan import RunPlan
from fgnet.engine.run_record import record_path
from fgnet.postproc.blockwise_decoder import BlockPlan, BlockwiseOptions, fitting_block, run_stages
from fgnet.postproc.blockwise_graph import forget_unsaved, graph_attributes, is_graph, load_graph, save_graph
from fgnet.postproc.blockwise_numbers import count_segments
from fgnet.postproc.blockwise_tree import SidecarTree
from fgnet.postproc.sidecar import PLAN
from fgnet.postproc.watershed import WatershedOptions
from fgnet.volumes.durability import put_in_place
from fgnet.volumes.errors import DecodingError, OutputError
from fgnet.volumes.geometry import as_triple
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.output_store import explained
from fgnet.volumes.removal import aside, remove_leftovers
from fgnet.volumes.writing import begun_as


def decoding_job(
    outputs: RunOutputs, options: RunOptions, named: dict[str, Any], plan: RunPlan, mask: StoredMask | None = None
) -> DecodingJob:
    """The blockwise decoding of a run, whose affinities may still be in the making.

    What a kill has left in its folder is gone on with; what was left of other affinities, or does not reach as far, is
    removed.

    Args:
        outputs: of the run, with segmentations.
        options: of the run.
        named: what the affinities depend on.
        plan: of the run.
        mask: outside of which labels are 0; `named` tells it from others.

    Raises:
        OutputError: the folder cannot be removed, or something else lies in it.
    """
    shape = as_triple(outputs.affinities.shape[-3:], "shape")
    digest = _digest(named)
    watershed = WatershedOptions(flow=options.decoding.fragments)
    wanted = BlockwiseOptions(
        options.thresholds,
        block=fitting_block(shape, watershed),
        min_size=options.min_size,
        watershed=watershed,
        tree_threshold=options.tree_threshold,
    )
    with explained(decoding_folder(options.output)):
        decoder = _continued(options.output, BlockPlan(shape, wanted), digest)
        if decoder is None:
            drop_decoding(options.output)
    groups = [None, *map(threshold_group, options.more_thresholds)]
    labels = tuple(StoredLabels(outputs.path, group, shape) for group in groups)
    return DecodingJob(
        folder=pieces_folder(options.output, BlockPlan(shape, decoder or wanted).describe(digest)),
        outputs=labels,
        names=tuple(output.name() for output in labels),
        options=decoder or wanted,
        affinities=outputs.affinities.path / "0",
        identity=digest,
        memory=options.graph_memory or _share_of_memory(),
        output=outputs.path,
        run=plan,
        mask=mask,
    )


def _digest(named: dict[str, Any]) -> str:
    """What tells affinities from others, of what they depend on."""
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _continued(output: Path, plan: BlockPlan, identity: str) -> BlockwiseOptions | None:
    """The options with which what a kill has left beside an output is gone on with; None if it is of no use."""
    for claim in decoding_folder(output).glob(f"*/{PLAN}"):
        try:
            held = claim.read_text()
            before = float(json.loads(held)["options"]["tree_threshold"])
            # A tree that reaches higher gives the same segmentations.
            options = replace(plan.options, tree_threshold=before)
        except (OSError, ValueError, KeyError, TypeError, DecodingError):
            continue
        if BlockPlan(plan.shape, options).describe(identity) == held and claim.parent == pieces_folder(output, held):
            return options
    return None


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
        OutputError: something is there that is not to be replaced, or is no merge tree; it would lie in the output, or
            where a run puts other things beside it; or nothing can be written there.
    """
    path = options.graph
    if path is None:
        return
    tree, output = path.resolve(), options.output.resolve()
    remedy = "give --save-graph a path of its own"
    if tree == output or output in tree.parents or tree in output.parents:
        raise OutputError("the merge tree cannot be the output, lie in it or hold it", where=path, remedy=remedy)
    # The first two are deleted at the end, with all that they hold.
    for place in (decoding_folder, network_store, journal_path, record_path):
        beside = place(options.output).resolve()
        if beside in (tree, *tree.parents):
            raise OutputError(f"the merge tree cannot lie in {beside.name}", where=path, remedy=remedy)
    if path.is_symlink():
        raise OutputError("this is a link, and a merge tree is put in place by renaming", where=path, remedy=remedy)
    held = next(folder for folder in tree.parents if folder.exists())
    if not held.is_dir() or not os.access(held, os.W_OK | os.X_OK):
        why = "no folder that you may write to" if held.is_dir() else "a file, not a folder"
        raise OutputError(
            f"the merge tree cannot be written: {held} is {why}", where=path, remedy="give --save-graph another path"
        )
    if not path.exists():
        return
    if not is_graph(path):
        raise OutputError("this exists already and is no merge tree", where=path, remedy="choose another path")
    if not (options.overwrite or options.resume):
        raise OutputError("a merge tree is there already", where=path, remedy="choose another path, or --overwrite")


def kept_tree(path: Path | None) -> dict[str, Any] | None:
    """What tells the merge tree that is kept somewhere from others, as plain data; None where there is none."""
    if path is None or not is_graph(path):
        return None
    held = graph_attributes(path)
    return {"plan": held.get("plan"), "output": held.get("output")}


def require_graph(options: RunOptions, named: dict[str, Any]) -> None:
    """Refuse a complete output whose merge tree is asked for and was not kept.

    Args:
        options: of the run that was to go on with it.
        named: what its affinities depend on.

    Raises:
        OutputError: there is no tree of such affinities, or it ends below what is asked for.
    """
    if options.graph is None:
        return
    plan: Any = (kept_tree(options.graph) or {}).get("plan")
    try:
        if plan["affinities"] == _digest(named) and plan["options"]["tree_threshold"] >= options.tree_threshold:
            return
    except (KeyError, TypeError):
        pass  # no tree, or one of another version
    raise OutputError(
        "the output is complete, only the run that makes it keeps its merge tree, and none of it is here",
        where=options.graph,
        remedy="leave out --save-graph, or start anew with --overwrite",
    )


def refuse_other_graph(job: DecodingJob, options: RunOptions, replaced: dict[str, Any] | None) -> None:
    """Refuse to keep the merge tree of a decoding over that of another one.

    Args:
        job: the decoding; its affinities may still be in the making.
        options: of the run.
        replaced: `kept_tree` of what may be replaced, as the run that is gone on with has noted it; None for nothing.

    Raises:
        OutputError: a tree is there that is neither of this decoding nor to be replaced.
    """
    found = kept_tree(options.graph)
    if found is None or options.overwrite or found == replaced or found["output"] == _begun_as(job):
        return
    raise OutputError(
        "a merge tree of another decoding is there, which the run that is gone on with was not to replace",
        where=options.graph,
        remedy="choose another path, or remove it",
    )


def _begun_as(job: DecodingJob) -> str:
    """What tells the output of a decoding from any other; its plan stays the same where no probe sees a change."""
    return begun_as(job.outputs[0].path, group=job.outputs[0].group)


def keep_graph(
    job: DecodingJob, options: RunOptions, segmentation: MultiscaleWriter, *, replaced: dict[str, Any] | None
) -> None:
    """Keep the merge tree of a finished decoding, if that is asked for; see `fgnet.postproc.blockwise_graph`.

    Another one that is there is deleted once this one is whole.

    Args:
        job: the decoding.
        options: of the run.
        segmentation: whose name, voxel size and offset are kept with it.
        replaced: as for `refuse_other_graph`.

    Raises:
        DecodingError, OutputError: something else is there, or it cannot be written.
    """
    path = options.graph
    if path is None:
        return
    remove_leftovers(path)
    refuse_other_graph(job, options, replaced)
    tree = SidecarTree(job.plan, job.sidecar)
    found, own = kept_tree(path), {"plan": json.loads(job.describe()), "output": _begun_as(job)}
    if found == own:
        # A kill came between it and the end of the run.
        forget_unsaved(tree, path)
        return
    space = segmentation.space
    where = {"voxel_size": space.voxel_size, "offset": space.offset, "known": space.known}
    attributes = {"name": segmentation.name, "space": where, "output": own["output"]}
    if found is None:
        save_graph(tree, path, attributes=attributes)
        return
    with explained(path), aside(path) as spare:
        save_graph(tree, spare / "new", attributes=attributes)
        put_in_place(spare / "new", path, spare / "old")


def segment_counts(job: DecodingJob) -> list[int]:
    """How many segments each output of a finished decoding has."""
    tree = load_graph(job.graph) if job.graph else SidecarTree(job.plan, job.sidecar)
    return [count_segments(tree, labelling, job.sidecar) for labelling in job.labellings]
