"""fgnet-bench engine: output voxels per second of every way of running a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fgnet.cli.bench_options import AsJson, Output, Report, listed, whole_numbers
from fgnet.cli.bench_result import publish, require_places
from fgnet.cli.console import say
from fgnet.volumes.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fgnet.engine.bundle import BundleManifest
    from fgnet.engine.torch_runner import Device


def engine(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle of fgnet-export.", show_default="nano, which ships with fgnet")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="openvino, onnxruntime, tensorrt, torch-compile, torch-compile-max-autotune (minutes), ...; several "
            "by commas. Eager fp32 always runs too.",
            show_default="every installed one",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, bf16, int8; several by commas.", show_default="all that the bundle offers"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="a GPU if there is one")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of one call on the CPU.", show_default="each backend's own choice")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="In a window, which is timed as a whole.")] = 4,
    repeats: Annotated[
        int,
        typer.Option(min=1, help="Most windows of each row in a process; fewer are run once the last three agree."),
    ] = 7,
    launches: Annotated[
        int, typer.Option(min=1, help="Processes of each row, one after the other: ratios move between processes.")
    ] = 2,
    batches: Annotated[
        str, typer.Option(help="Blocks of one call of PyTorch's rows; several by commas. Graphs are of one block.")
    ] = "1",
    volume: Annotated[
        str | None, typer.Option(help="Address of gray to run on.", show_default="synthetic neuropil")
    ] = None,
    apart: Annotated[
        bool | None,
        typer.Option(
            "--apart/--together",
            help="One row at a time beside eager fp32, which takes less memory; or all in turn.",
            show_default="as memory allows",
        ),
    ] = None,
    roofline: Annotated[
        bool, typer.Option(help="Measure what the device does at most first, and tell shares of it.")
    ] = True,
    output: Output = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Print output voxels/s of every backend and precision, next to eager PyTorch, autocast and torch.compile.

    Try it: fgnet-bench engine, or fgnet-bench engine model.bundle --backend openvino --precision fp32,bf16.
    """
    from fgnet.benchmarks.engine_benchmark import EngineOptions, measure_engines
    from fgnet.benchmarks.engine_table import render
    from fgnet.benchmarks.rows import plan_rows
    from fgnet.engine.bundle import default_bundle, load_bundle

    if device not in (None, "cpu", "cuda"):
        raise BackendError(f"there is no device {device!r}", where="--device", remedy="cpu or cuda")
    require_places(output, report)
    loaded = load_bundle(bundle or default_bundle())
    plan = plan_rows(
        loaded,
        backends=listed(backend),
        precisions=listed(precision),
        device=cast("Device | None", device),
        batches=whole_numbers(batches, "--batches"),
    )
    gray, source = _gray(volume, loaded.manifest, blocks)
    options = EngineOptions(
        blocks=blocks, repeats=repeats, launches=launches, threads=threads, apart=apart, roofline=roofline
    )
    benchmark = measure_engines(loaded, gray, plan, options, source=source, say=say)
    publish(
        benchmark.to_dict(), lambda: render(benchmark), context=context, output=output, report=report, as_json=as_json
    )


def _gray(address: str | None, manifest: BundleManifest, blocks: int) -> tuple[npt.NDArray[np.uint8], str]:
    """The column that is run on, and what it is in words."""
    from fgnet.benchmarks.tissue import column_of, synthetic_column
    from fgnet.volumes.reading import open_volume

    if address is None:
        say("making synthetic neuropil")
        return synthetic_column(manifest, blocks), "synthetic neuropil"
    with open_volume(address, holds="gray") as volume:
        return column_of(volume, manifest, blocks), volume.name
