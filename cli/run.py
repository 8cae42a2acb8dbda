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
from fgnet.cli.run_display import open_display, say_before
from fgnet.cli.run_from_graph import segment_graph
from fgnet.cli.run_plan_table import print_plan
from fgnet.cli.run_preview import check_preview, keep_inputs
from fgnet.cli.run_rescaling import requested_grid, requested_size, size_note, voxel_sizes_of
from fgnet.cli.stop_signals import stop_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fgnet.engine.backends import Choice
    from fgnet.engine.bundle import Bundle, Precision
    from fgnet.engine.network_grid import NetworkGrid
    from fgnet.engine.pipeline import Section
    from fgnet.engine.run_options import RunOptions
    from fgnet.engine.streaming import StreamState
    from fgnet.engine.torch_runner import Device
    from fgnet.volumes.reading import Volume

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
        result, section = _segment(
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


def _segment(
    volume: Volume,
    mask: Volume | None,
    bundle: Bundle,
    choices: Iterator[Choice],
    options: RunOptions,
    grid: NetworkGrid | None,
    voxel_sizes: dict[str, Any],
    *,
    threads: int | None,
    processes: int,
    log_json: bool,
    began: float,
) -> tuple[dict[str, Any], Section | None]:
    """Runs the pipeline under a display, and keeps the record of it beside the output.

    Returns:
        What `--json` prints, little where the output was complete already; and the middle section for a picture.
    """
    from fgnet.cli.run_streamer import open_streamer
    from fgnet.engine.pipeline import plan_run, segment_volume
    from fgnet.engine.rescaled_streaming import RescaledStreamer, plan_network
    from fgnet.engine.run_continuation import AlreadyCompleteError
    from fgnet.engine.run_estimate import decoded_again
    from fgnet.engine.run_record import streaming_figures, surroundings, write_record
    from fgnet.engine.streaming import RunStoppedError
    from fgnet.volumes.errors import OutputError

    with ExitStack() as closing:
        streamer, described, close = open_streamer(
            bundle,
            choices,
            threads=threads,
            processes=processes,
            say=lambda text: say_before(text, as_json=log_json),
        )
        closing.callback(close)
        network_plan = None
        if grid is not None:
            _, _, network_plan = plan_network(volume, grid, streamer.patch, options, shares=streamer.shares)
            streamer = RescaledStreamer(streamer, grid)
        display = closing.enter_context(open_display((options.box or volume.box).size, as_json=log_json))
        display.event("start", output=str(options.output), network=streamer.identity)
        plan = network_plan or plan_run(volume, streamer.patch, options, shares=streamer.shares)
        if (again := decoded_again(volume, plan)) is not None:
            display.say(f"warning: {again}")
        # Threads that decode ask nobody whether to stop; who waits for workers does.
        asking = ("affinities",) if options.crew is None else ("affinities", "agglomeration")
        running = "affinities"

        def told() -> None:
            if running == "affinities":
                display.say("finishing the block in hand, then stopping")

        signals = closing.enter_context(stop_signals(told))

        def report(phase: str, state: StreamState) -> None:
            nonlocal running
            running = phase
            signals.asked = phase in asking
            display.phase(phase, state)

        try:
            made = segment_volume(
                volume, streamer, options, mask=mask, report=report, decoded=display.decoding, stop=signals
            )
        except RunStoppedError:
            display.event("stopped", output=str(options.output))
            display.say(
                f"stopped; the same command with --resume, and without --overwrite, goes on with {options.output}"
            )
            raise typer.Exit(128 + (signals.number or 0)) from None
        except AlreadyCompleteError as complete:
            if options.section:
                raise OutputError(
                    "the output is complete, and only the run that makes it draws it",
                    where=options.output,
                    remedy="leave out --preview, or start anew with --overwrite",
                ) from complete
            display.event("complete", output=str(options.output))
            display.say(str(complete))
            return {"output": str(options.output), "complete": True}, None
        total = time.perf_counter() - began
        figures = streaming_figures(made.streaming)
        result: dict[str, Any] = {
            "voxels": made.plan.region.size,
            "seconds": round(total, 3),
            "voxels_per_second": round(made.plan.region.size / total),
            "stages": {phase: round(seconds, 3) for phase, seconds in made.seconds.items()},
            "bottleneck": figures["bottleneck"],
            "backend": described["backend"],
            "precision": described["precision"],
            "output": str(options.output),
            "segments": None if made.segments is None else made.segments[0],
            **({"thresholds": _by_threshold(options, made.segments)} if options.more_thresholds else {}),
            "model": bundle.manifest.name,
            "decoder": options.decoder,
            "scoring": options.scoring,
            "threshold": options.threshold,
            "resumed_chunks": made.resumed,
            "runner": described,
        }
        write_record(
            options.output,
            {
                **result,
                "identity": made.identity,
                "decoding": options.wanted,
                "plan": made.plan.to_dict(),
                **({} if network_plan is None else {"network_plan": network_plan.to_dict()}),
                "voxel_sizes": voxel_sizes,
                "streaming": figures,
                "bundle": {"path": str(bundle.path), "files": dict(bundle.manifest.files)},
                **surroundings(),
            },
        )
        display.event("finished", **result)
    return result, made.section


def _by_threshold(options: RunOptions, segments: list[int] | None) -> dict[str, int]:
    """How many segments there are at each threshold."""
    return dict(zip(map("{:g}".format, options.thresholds), segments or [], strict=True))


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
