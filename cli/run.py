"""fgnet-run: a volume in, a segmentation out."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from fgnet.cli.console import (
    format_duration,
    format_rate,
    guarded,
    print_json,
    print_text,
    run_app,
)
from fgnet.cli.run_display import open_display, say_before
from fgnet.cli.run_plan_table import print_plan
from fgnet.cli.stop_signals import stop_signals

if TYPE_CHECKING:
    from fgnet.engine.backends import Choice
    from fgnet.engine.bundle import Bundle, Precision
    from fgnet.engine.pipeline import Section
    from fgnet.engine.run_options import RunOptions
    from fgnet.engine.streaming import StreamState
    from fgnet.engine.torch_runner import Device
    from fgnet.postproc.waterz_decoder import WaterzOptions
    from fgnet.volumes.reading import Volume

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_DECODING, _INFERENCE, _OUTPUT = "Decoding", "Inference", "Output"


@app.command()
@guarded
def run(
    volume: Annotated[
        str, typer.Argument(help="Gray values: v.zarr[/group/array], f.h5:dataset, stack.tif or a folder of sections.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Zarr store to create.", show_default="VOLUME's name + .segmentation.zarr"),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Bundle of fgnet-export.", show_default="nano, which ships with fgnet")
    ] = None,
    stride: Annotated[
        str | None, typer.Option(help="Voxels z,y,x between patches.", rich_help_panel=_INFERENCE)
    ] = None,
    roi: Annotated[str | None, typer.Option(help="Region z0:z1,y0:y1,x0:x1 of the volume.")] = None,
    rescale: Annotated[
        str | None, typer.Option(help="LOW,HIGH: gray values that become 0 and 255, for volumes that are not uint8.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Address of a volume that is 0 where there is no tissue; coarser ones will do.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="auto, onnxruntime, openvino, tensorrt, tensorrt-rtx, torch, ...", rich_help_panel=_INFERENCE
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, bf16 or int8.", show_default="the fastest that was proved", rich_help_panel=_INFERENCE
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", show_default="a GPU if present", rich_help_panel=_INFERENCE)
    ] = None,
    blending: Annotated[
        str, typer.Option(help="gaussian, bump or constant weights of a patch.", rich_help_panel=_INFERENCE)
    ] = "gaussian",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads.", show_default="all cores", rich_help_panel=_INFERENCE)
    ] = None,
    decoder: Annotated[
        str,
        typer.Option(
            help="waterz, with all in memory; blockwise, with a block at a time; none: the output is the affinities.",
            rich_help_panel=_DECODING,
        ),
    ] = "waterz",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="0 to 1; higher merges more.", show_default="the model's, from validation", rich_help_panel=_DECODING
        ),
    ] = None,
    fragments: Annotated[
        str | None,
        typer.Option(help="sections or affinity.", show_default="the model's", rich_help_panel=_DECODING),
    ] = None,
    scoring: Annotated[
        str | None, typer.Option(help="quantile or mean.", show_default="the model's", rich_help_panel=_DECODING)
    ] = None,
    quantile: Annotated[
        int | None, typer.Option(help="Percent, 10 to 95.", show_default="the model's", rich_help_panel=_DECODING)
    ] = None,
    min_size: Annotated[
        int, typer.Option(min=0, help="Voxels below which a segment becomes background.", rich_help_panel=_DECODING)
    ] = 0,
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="That share the work: on GPUs one for each, on a CPU its cores.", rich_help_panel=_INFERENCE
        ),
    ] = 1,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="GiB of each process for the sums of unfinished chunks, of the host or the GPU; with more of it,"
            " less work is done twice.",
            show_default="0.5",
            rich_help_panel=_INFERENCE,
        ),
    ] = None,
    save_affinities: Annotated[
        bool, typer.Option("--save-affinities", help="Keep them in OUTPUT/affinities.", rich_help_panel=_OUTPUT)
    ] = False,
    preview: Annotated[Path | None, typer.Option(help="PNG of the middle section.", rich_help_panel=_OUTPUT)] = None,
    zarr_format: Annotated[
        int, typer.Option(min=2, max=3, help="3 (OME-NGFF 0.5) or 2 (0.4).", rich_help_panel=_OUTPUT)
    ] = 3,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier output.", rich_help_panel=_OUTPUT)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a run of this output that was stopped.", rich_help_panel=_OUTPUT),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done and the memory it takes, and stop.")
    ] = False,
    log_json: Annotated[
        bool,
        typer.Option("--log-json", help="Progress on stderr as lines of JSON.", rich_help_panel=_OUTPUT),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Segment the neurons of an electron-microscopy volume into an OME-Zarr.

    Try it: fgnet-sample sample.zarr, then fgnet-run sample.zarr -o segmentation.zarr --preview preview.png.
    """
    started = time.perf_counter()
    from fgnet.engine.backends import BACKENDS, choose_backend
    from fgnet.engine.bundle import PRECISIONS, default_bundle, load_bundle
    from fgnet.engine.run_options import RunOptions
    from fgnet.engine.run_plan import DEFAULT_MEMORY
    from fgnet.volumes.geometry import parse_roi, parse_triple
    from fgnet.volumes.reading import open_volume

    _one_of("decoder", decoder, "waterz", "blockwise", "none")
    _one_of("backend", backend, "auto", *BACKENDS)
    _one_of("precision", precision or PRECISIONS[0], *PRECISIONS)
    _one_of("device", device or "cpu", "cpu", "cuda")
    _one_of("blending", blending, "gaussian", "bump", "constant")
    if resume and overwrite:
        raise typer.BadParameter("one goes on with an earlier output, the other replaces it", param_hint="--resume")
    if memory is not None and not math.isfinite(memory):
        raise typer.BadParameter(f"{memory} is no amount of memory", param_hint="--memory")
    if preview is not None and decoder == "none":
        raise typer.BadParameter("it shows a segmentation, and --decoder none makes none", param_hint="--preview")
    if decoder == "blockwise" and (scoring not in (None, "mean") or quantile is not None):
        raise typer.BadParameter(
            "it scores by mean affinity; other --scoring and --quantile are waterz's", param_hint="--decoder blockwise"
        )
    with ExitStack() as opened_volumes:
        opened = opened_volumes.enter_context(open_volume(volume))
        tissue = None if mask is None else opened_volumes.enter_context(open_volume(mask))
        bundle = load_bundle(model or default_bundle())
        decoding = _decoding(bundle, fragments, "mean" if decoder == "blockwise" else scoring, quantile)
        if threshold is None and decoder != "none":
            threshold = bundle.manifest.decoding.threshold_of(decoding.scoring)
        made_of = "affinities" if decoder == "none" else "segmentation"
        options = RunOptions(
            output=output or Path(f"{Path(opened.name).stem}.{made_of}.zarr"),
            threshold=bundle.manifest.decoding.threshold if threshold is None else threshold,
            decoder=cast(Literal["waterz", "blockwise", "none"], decoder),
            decoding=decoding,
            stride=parse_triple(stride, "--stride") if stride else bundle.manifest.stride,
            box=parse_roi(roi, opened.box.shape) if roi else None,
            blending=cast(Literal["gaussian", "bump", "constant"], blending),
            min_size=min_size,
            rescale=_range(rescale),
            memory=DEFAULT_MEMORY if memory is None else int(memory * 2**30),
            save_affinities=save_affinities,
            zarr_format=3 if zarr_format == 3 else 2,
            overwrite=overwrite,
            resume=resume,
            threads=threads,
        )
        if dry_run:
            print_plan(opened, bundle, options, shares=processes, as_json=as_json)
            return
        choice = choose_backend(
            bundle, backend, precision=cast("Precision | None", precision), device=cast("Device | None", device)
        )
        told = f"{bundle.manifest.name} on {choice.backend} {choice.precision}: {choice.reason}"
        say_before(told, as_json=log_json)
        result, section = _segment(
            opened,
            tissue,
            bundle,
            choice,
            options,
            threads=threads,
            processes=processes,
            log_json=log_json,
            began=started,
        )
    if preview is not None and section.segmentation is not None:
        from fgnet.postproc.preview import save_preview

        save_preview(preview, section.gray, section.affinities, section.segmentation)
    if as_json:
        print_json(result)
        return
    what = "affinities" if result["segments"] is None else f"{result['segments']} segments"
    print_text(
        f"{options.output}: {what}, {result['voxels'] / 1e6:.1f} Mvoxel in {format_duration(result['seconds'])}"
        f" ({format_rate(result['voxels_per_second'])}); {result['bottleneck']}"
    )


def _segment(
    volume: Volume,
    mask: Volume | None,
    bundle: Bundle,
    choice: Choice,
    options: RunOptions,
    *,
    threads: int | None,
    processes: int,
    log_json: bool,
    began: float,
) -> tuple[dict[str, Any], Section]:
    """Runs the pipeline under a display, and keeps the record of it beside the output.

    Returns:
        What `--json` prints, and the middle section.
    """
    from fgnet.cli.run_streamer import open_streamer
    from fgnet.engine.pipeline import segment_volume
    from fgnet.engine.run_continuation import AlreadyCompleteError
    from fgnet.engine.run_record import streaming_figures, surroundings, write_record
    from fgnet.engine.streaming import RunStoppedError

    with ExitStack() as closing:
        streamer, described, close = open_streamer(
            bundle,
            choice,
            threads=threads,
            processes=processes,
            say=lambda text: say_before(text, as_json=log_json),
        )
        closing.callback(close)
        display = closing.enter_context(open_display((options.box or volume.box).size, as_json=log_json))
        display.event("start", output=str(options.output), network=streamer.identity)
        signals = closing.enter_context(stop_signals(lambda: display.say("finishing the block in hand, then stopping")))

        def report(phase: str, state: StreamState) -> None:
            signals.asked = phase == "affinities"
            display.phase(phase, state)

        try:
            made = segment_volume(volume, streamer, options, mask=mask, report=report, stop=signals)
        except RunStoppedError:
            display.event("stopped", output=str(options.output))
            display.say(
                f"stopped; the same command with --resume, and without --overwrite, goes on with {options.output}"
            )
            raise typer.Exit(128 + (signals.number or 0)) from None
        except AlreadyCompleteError as complete:
            display.event("complete", output=str(options.output))
            display.say(str(complete))
            raise typer.Exit(0) from None
        total = time.perf_counter() - began
        figures = streaming_figures(made.streaming)
        result: dict[str, Any] = {
            "voxels": made.plan.region.size,
            "seconds": round(total, 3),
            "voxels_per_second": round(made.plan.region.size / total),
            "stages": {phase: round(seconds, 3) for phase, seconds in made.seconds.items()},
            "bottleneck": figures["bottleneck"],
            "backend": choice.backend,
            "precision": choice.precision,
            "output": str(options.output),
            "segments": made.segments,
            "model": bundle.manifest.name,
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
                "streaming": figures,
                "bundle": {"path": str(bundle.path), "files": dict(bundle.manifest.files)},
                **surroundings(),
            },
        )
        display.event("finished", **result)
    return result, made.section


def _decoding(bundle: Bundle, fragments: str | None, scoring: str | None, quantile: int | None) -> WaterzOptions:
    """The model's decoder settings, where no option says otherwise."""
    from fgnet.postproc.waterz_decoder import WaterzOptions

    advised = bundle.manifest.decoding
    # Values that are out of range are refused by WaterzOptions itself, whose message names the option.
    return replace(
        WaterzOptions(),
        fragments=cast(Literal["sections", "affinity"], fragments or advised.fragments),
        scoring=cast(Literal["quantile", "mean"], scoring or advised.scoring),
        quantile=advised.quantile if quantile is None else quantile,
    )


def _one_of(option: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=f"--{option}")


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not LOW,HIGH", param_hint="--rescale") from None
    return low, high


def main() -> None:
    """Entry point of fgnet-run."""
    run_app(app)


if __name__ == "__main__":
    main()
