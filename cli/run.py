"""fgnet-run: a volume in, a segmentation out."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

from fgnet.cli import run_arguments as args
from fgnet.cli.console import (
    format_duration,
    format_rate,
    guarded,
    print_json,
    print_text,
    run_app,
)
from fgnet.cli.run_decoding import DecodingRequest
from fgnet.cli.run_display import say_before
from fgnet.cli.run_from_graph import segment_graph
from fgnet.cli.run_plan_table import print_plan
from fgnet.cli.run_preview import check_preview, keep_inputs
from fgnet.cli.run_rescaling import requested_grid, requested_size, size_note, voxel_sizes_of
from fgnet.cli.run_segment import segment

if TYPE_CHECKING:
    from fgnet.engine.bundle import Precision
    from fgnet.engine.torch_runner import Device

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command()
@guarded
def run(
    context: typer.Context,
    volume: args.Volume = None,
    output: args.Output = None,
    model: args.Model = None,
    stride: args.Stride = None,
    roi: args.Roi = None,
    gray_range: args.GrayRange = None,
    voxel_size: args.VoxelSize = None,
    rescale: args.Rescale = None,
    mask: args.Mask = None,
    backend: args.Backend = "auto",
    precision: args.Precision = None,
    device: args.Device = None,
    blending: args.Blending = "gaussian",
    threads: args.Threads = None,
    decoder: args.Decoder = "auto",
    threshold: args.Threshold = None,
    fragments: args.Fragments = None,
    scoring: args.Scoring = None,
    quantile: args.Quantile = None,
    min_size: args.MinSize = 0,
    save_graph: args.SaveGraph = None,
    graph_threshold: args.GraphThreshold = None,
    from_graph: args.FromGraph = None,
    workers: args.Workers = None,
    cluster: args.Cluster = None,
    cluster_options: args.ClusterOptions = None,
    host: args.Host = None,
    processes: args.Processes = 1,
    memory: args.Memory = None,
    save_affinities: args.SaveAffinities = False,
    preview: args.Preview = None,
    zarr_format: args.ZarrFormat = 3,
    overwrite: args.Overwrite = False,
    resume: args.Resume = False,
    dry_run: args.DryRun = False,
    log_json: args.LogJson = False,
    as_json: args.AsJson = False,
) -> None:
    """Segment the neurons of an electron-microscopy volume into an OME-Zarr.

    Try it: fgnet-sample sample.zarr, then fgnet-run sample.zarr -o segmentation.zarr --preview preview.png.
    """
    started = time.perf_counter()
    from fgnet.engine.backends import BACKENDS, choices_for
    from fgnet.engine.bundle import PRECISIONS, default_bundle, load_bundle
    from fgnet.engine.network_grid import stated
    from fgnet.engine.run_options import RunOptions
    from fgnet.engine.run_plan import DEFAULT_MEMORY
    from fgnet.volumes.geometry import parse_roi, parse_triple
    from fgnet.volumes.reading import open_volume
    from fgnet.volumes.section_gaps import section_gap_note

    _one_of("backend", backend, "auto", *BACKENDS)
    _one_of("precision", precision or PRECISIONS[0], *PRECISIONS)
    _one_of("device", device or "cpu", "cpu", "cuda")
    _one_of("blending", blending, "gaussian", "bump", "constant")
    if resume and overwrite:
        raise typer.BadParameter("one goes on with an earlier output, the other replaces it", param_hint="--resume")
    if memory is not None and not math.isfinite(memory):
        raise typer.BadParameter(f"{memory} is no amount of memory", param_hint="--memory")
    if preview is not None:
        check_preview(preview, decoder)
    request = DecodingRequest(
        decoder, threshold, fragments, scoring, quantile, workers, cluster, cluster_options, host, save_graph,
        graph_threshold, min_size,
    )  # fmt: skip
    if from_graph is not None:
        result = segment_graph(
            context,
            from_graph,
            request,
            output,
            min_size,
            threads,
            zarr_format,
            overwrite=overwrite,
            resume=resume,
            log_json=log_json,
        )
        _print_result(result, as_json=as_json)
        return
    if volume is None:
        raise typer.BadParameter("give one, or a merge tree by --from-graph", param_hint="VOLUME")
    with ExitStack() as opened_volumes:
        found = opened_volumes.enter_context(open_volume(volume, holds="gray"))
        opened = stated(found, size := requested_size(voxel_size))
        tissue = None if mask is None else opened_volumes.enter_context(open_volume(mask))
        if preview is not None:
            keep_inputs(preview, opened, tissue)
        bundle = load_bundle(model or default_bundle())
        box = parse_roi(roi, opened.box.shape) if roi is not None else None
        voxels, advised = (box or opened.box).size, bundle.manifest.decoding
        if not resume:  # one that was begun before this was refused goes on
            request.refuse_unread(advised)
        decoding = request.for_run(voxels, advised)
        made_of = "affinities" if decoding["decoder"] == "none" else "segmentation"
        options = RunOptions(
            output=output or Path(f"{Path(opened.name).stem}.{made_of}.zarr"),
            **decoding,
            stride=parse_triple(stride, "--stride") if stride is not None else bundle.manifest.stride,
            box=box,
            blending=cast(Literal["gaussian", "bump", "constant"], blending),
            min_size=min_size,
            rescale=_range(gray_range),
            memory=DEFAULT_MEMORY if memory is None else int(memory * 2**30),
            graph_memory=None if memory is None else int(memory * 2**30),
            save_affinities=save_affinities,
            zarr_format=3 if zarr_format == 3 else 2,
            overwrite=overwrite,
            resume=resume,
            threads=threads,
            section=preview is not None,
        )
        grid = requested_grid(rescale, opened, bundle, options.rescale, size)
        voxel_sizes = voxel_sizes_of(opened, bundle, grid)
        notes = (section_gap_note(opened.address), size_note(found.space, size), request.note(voxels, advised))
        _say(*notes, warning=voxel_sizes["warning"], as_json=log_json)
        if dry_run:
            print_plan(opened, tissue, bundle, options, grid=grid, shares=processes, as_json=as_json)
            return
        choices = choices_for(
            bundle, backend, precision=cast("Precision | None", precision), device=cast("Device | None", device)
        )
        result, section = segment(
            opened,
            tissue,
            bundle,
            choices,
            options,
            grid,
            voxel_sizes,
            threads=threads,
            processes=processes,
            log_json=log_json,
            began=started,
        )
    _print_result(result, as_json=as_json)
    if preview is not None and section is not None and section.segmentation is not None:
        from fgnet.postproc.preview import save_preview

        save_preview(preview, section.gray, section.affinities, section.segmentation)


def _print_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    if "segments" not in result:
        return  # it was complete, which was said
    what = "affinities" if result["segments"] is None else f"{result['segments']} segments"
    if others := result.get("thresholds"):
        what += f" ({', '.join(f'{count} at {threshold}' for threshold, count in others.items())})"
    told = f"; {result['bottleneck']}" if "bottleneck" in result else ""
    print_text(
        f"{result['output']}: {what}, {result['voxels'] / 1e6:.1f} Mvoxel in {format_duration(result['seconds'])}"
        f" ({format_rate(result['voxels_per_second'])}){told}"
    )


def _say(*notes: str | None, warning: str | None, as_json: bool) -> None:
    """Tell what is to be known before a run starts."""
    for note in (*notes, warning and f"warning: {warning}"):
        if note is not None:
            say_before(note, as_json=as_json)


def _one_of(option: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=f"--{option}")


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not LOW,HIGH", param_hint="--gray-range") from None
    return low, high


def main() -> None:
    """Entry point of fgnet-run."""
    from fgnet.volumes.kept_memory import keep_memory

    keep_memory()
    run_app(app)


if __name__ == "__main__":
    main()
