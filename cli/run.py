"""fgnet-run: a volume in, a segmentation out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from fgnet.cli.console import (
    format_duration,
    format_rate,
    guarded,
    optional_packages,
    print_json,
    print_text,
    run_app,
    say,
    voxel_progress,
)

if TYPE_CHECKING:
    from fgnet.engine.bundle import Bundle, Precision
    from fgnet.engine.pipeline import Run, RunOptions
    from fgnet.engine.torch_runner import Device, EagerNetwork
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
    decoder: Annotated[str, typer.Option(help="waterz.", rich_help_panel=_DECODING)] = "waterz",
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Segment the neurons of an electron-microscopy volume into an OME-Zarr.

    Try it: fgnet-sample sample.zarr, then fgnet-run sample.zarr -o segmentation.zarr --preview preview.png.
    """
    started = time.perf_counter()
    from fgnet.engine.backends import BACKENDS, choose_backend, open_runner
    from fgnet.engine.bundle import PRECISIONS, default_bundle, load_bundle
    from fgnet.engine.pipeline import RunOptions
    from fgnet.volumes.geometry import parse_roi, parse_triple
    from fgnet.volumes.reading import open_volume

    _one_of("decoder", decoder, "waterz")
    _one_of("backend", backend, "auto", *BACKENDS)
    _one_of("precision", precision or PRECISIONS[0], *PRECISIONS)
    _one_of("device", device or "cpu", "cpu", "cuda")
    _one_of("blending", blending, "gaussian", "bump", "constant")
    with open_volume(volume) as opened:
        bundle = load_bundle(model or default_bundle())
        recommended = bundle.manifest.decoding
        options = RunOptions(
            output=output or Path(f"{Path(opened.name).stem}.segmentation.zarr"),
            threshold=recommended.threshold if threshold is None else threshold,
            decoding=_decoding(bundle, fragments, scoring, quantile),
            stride=parse_triple(stride, "--stride") if stride else bundle.manifest.stride,
            box=parse_roi(roi, opened.box.shape) if roi else None,
            blending=cast(Literal["gaussian", "bump", "constant"], blending),
            min_size=min_size,
            rescale=_range(rescale),
            save_affinities=save_affinities,
            zarr_format=3 if zarr_format == 3 else 2,
            overwrite=overwrite,
            threads=threads or _cores(),
        )
        choice = choose_backend(
            bundle, backend, precision=cast("Precision | None", precision), device=cast("Device | None", device)
        )
        say(f"{bundle.manifest.name} on {choice.backend} {choice.precision}: {choice.reason}")
        runner = open_runner(choice, bundle, _build, threads=threads, say=say)
        made = _segment(opened, runner, options)
    total = time.perf_counter() - started
    if preview is not None:
        from fgnet.postproc.preview import save_preview

        middle = made.box.shape[0] // 2
        save_preview(preview, made.gray[0], made.affinities[:, middle], made.segmentation[middle])
    voxels = made.box.size
    result: dict[str, Any] = {
        "voxels": voxels,
        "seconds": round(total, 3),
        "voxels_per_second": round(voxels / total),
        "stages": {stage: round(seconds, 3) for stage, seconds in made.seconds.items()},
        "backend": choice.backend,
        "precision": choice.precision,
        "output": str(options.output),
        "segments": made.segments,
        "model": bundle.manifest.name,
        "threshold": options.threshold,
        "runner": runner.describe(),
    }
    if as_json:
        print_json(result)
        return
    slowest = max(made.seconds, key=lambda stage: made.seconds[stage])
    print_text(
        f"{options.output}: {made.segments} segments, {voxels / 1e6:.1f} Mvoxel in {format_duration(total)}"
        f" ({format_rate(voxels / total)}; the slowest stage was {slowest}, {made.seconds[slowest]:.1f} s)"
    )


def _segment(volume: Volume, runner: Any, options: RunOptions) -> Run:
    """Runs the pipeline under a progress bar; inference is nearly all of the work."""
    from fgnet.engine.pipeline import segment_volume

    voxels = (options.box or volume.box).size
    done = 0
    with voxel_progress("affinities", voxels) as bar:

        def report(stage: str, finished: int) -> None:
            nonlocal done
            if stage == "affinities":
                done += finished
                bar.update(done)
                if done >= voxels:
                    bar.say("agglomerating")

        return segment_volume(volume, runner, options, report)


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


def _build(bundle: Bundle) -> EagerNetwork:
    """The eager network of a bundle, for the backend torch."""
    with optional_packages("train"):
        from fgnet.network.checkpoint import load_checkpoint

        return load_checkpoint(bundle.checkpoint).build()


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


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def main() -> None:
    """Entry point of fgnet-run."""
    run_app(app)


if __name__ == "__main__":
    main()
