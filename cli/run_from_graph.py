"""fgnet-run --from-graph: segmentations of a merge tree that an earlier run has kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fgnet.cli.run_display import open_display, say_before
from fgnet.cli.stop_signals import stop_signals

if TYPE_CHECKING:
    from fgnet.cli.run_decoding import DecodingRequest

# What a merge tree leaves open; everything else was settled when it was made.
_OPTIONS = {
    "output", "from_graph", "threshold", "min_size", "decoder", "threads", "workers", "cluster", "cluster_options",
    "host", "zarr_format", "overwrite", "resume", "log_json", "as_json",
}  # fmt: skip


def segment_graph(
    context: typer.Context,
    graph: Path,
    request: DecodingRequest,
    output: Path | None,
    min_size: int,
    threads: int | None,
    zarr_format: int,
    *,
    overwrite: bool,
    resume: bool,
    log_json: bool,
) -> dict[str, Any]:
    """Label a merge tree under a display.

    Args:
        context: of the command, to refuse options that a merge tree has settled.
        graph: of --save-graph.
        request: the decoding options.
        output: the Zarr store to create.
        min_size: voxels below which a segment becomes background.
        threads: blocks at a time.
        zarr_format: 2 or 3.
        overwrite: whether an earlier output is replaced.
        resume: whether one that was not finished is gone on with.
        log_json: progress as lines of JSON.

    Returns:
        What `--json` prints.

    Raises:
        BadParameter: an option that a merge tree has settled, or no threshold.
        FGNetError: as said in `fgnet.engine.graph_labels`.
    """
    from fgnet.engine.graph_labels import GraphOptions, label_graph
    from fgnet.engine.run_continuation import AlreadyCompleteError
    from fgnet.engine.run_outputs import threshold_name
    from fgnet.engine.streaming import RunStoppedError
    from fgnet.postproc.blockwise_graph import load_graph

    started = time.perf_counter()
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _OPTIONS and source is not None and source.name == "COMMANDLINE":
            hint = "VOLUME" if name == "volume" else f"--{name.replace('_', '-')}"
            raise typer.BadParameter("a merge tree has settled that: it goes without", param_hint=hint)
    if request.decoder not in ("auto", "blockwise"):
        raise typer.BadParameter("merge trees are the blockwise decoder's", param_hint="--decoder")
    if not request.thresholds:
        raise typer.BadParameter("give the threshold of the segmentation", param_hint="--threshold")
    options = GraphOptions(
        output=output or Path(f"{graph.stem}.{threshold_name(request.thresholds[0])}.segmentation.zarr"),
        thresholds=request.thresholds,
        min_size=min_size,
        threads=threads,
        crew=request.crew(),
        zarr_format=3 if zarr_format == 3 else 2,
        overwrite=overwrite,
        resume=resume,
    )
    voxels = math.prod(load_graph(graph).plan.shape)
    say_before(f"labels of {graph}", as_json=log_json)
    with open_display(voxels, as_json=log_json, title="labels") as display, stop_signals(lambda: None) as signals:
        signals.asked = options.crew is not None
        display.event("start", output=str(options.output), graph=str(graph))
        try:
            made = label_graph(graph, options, progress=display.decoding, stop=signals)
        except RunStoppedError:
            display.say(f"stopped; --resume goes on with {options.output}")
            raise typer.Exit(128 + (signals.number or 0)) from None
        except AlreadyCompleteError as complete:
            display.say(str(complete))
            return {"output": str(options.output), "complete": True}
        seconds = time.perf_counter() - started
        result: dict[str, Any] = {
            "output": str(options.output),
            "graph": str(graph),
            "voxels": made.voxels,
            "seconds": round(seconds, 3),
            "voxels_per_second": round(made.voxels / seconds),
            "segments": made.segments[0],
            "decoder": "blockwise",
            "scoring": "mean",
            "threshold": options.thresholds[0],
        }
        if len(made.segments) > 1:
            result["thresholds"] = dict(zip(map(threshold_name, options.thresholds), made.segments, strict=True))
        display.event("finished", **result)
    return result
