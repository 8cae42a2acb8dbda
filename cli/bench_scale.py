"""fgnet-bench scale: time and memory of fgnet-run against the volume's size."""

from __future__ import annotations

from typing import Annotated

import typer

from fgnet.cli.bench_options import AsJson, Folder, Output, Report, whole_numbers, working_folder
from fgnet.cli.bench_result import publish, require_places
from fgnet.cli.console import say


def scale(
    context: typer.Context,
    shape: Annotated[str, typer.Option(help="z,y,x voxels of the smallest volume.")] = "64,512,512",
    factors: Annotated[str, typer.Option(help="How many times as large the volumes are, by commas.")] = "1,2,4",
    axis: Annotated[str, typer.Option(help="z, y or x: along which they grow.")] = "z",
    processes: Annotated[str, typer.Option(help="Of fgnet-run, that share a volume; several by commas.")] = "1",
    repeats: Annotated[int, typer.Option(min=1, help="Of every run; all runs of a volume in turn.")] = 1,
    folder: Folder = None,
    output: Output = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Run fgnet-run on volumes of growing size: time, memory, and how both grow. Its options come after "--".

    Try it: fgnet-bench scale -- --decoder none --backend openvino.
    """
    from fgnet.benchmarks.scale_benchmark import measure_scale
    from fgnet.benchmarks.scale_table import render_scale
    from fgnet.volumes.geometry import parse_triple

    if axis not in ("z", "y", "x"):
        raise typer.BadParameter(f"{axis!r} is no axis", param_hint="--axis")
    require_places(output, report)
    sizes = sorted(whole_numbers(factors, "--factors"))
    shared = sorted(whole_numbers(processes, "--processes"))
    base = parse_triple(shape, "--shape")
    with working_folder(folder) as place:
        benchmark = measure_scale(
            base,
            sizes,
            "zyx".index(axis),
            context.args,
            processes=shared,
            repeats=repeats,
            folder=place,
            say=say,
        )
    publish(
        benchmark.to_dict(),
        lambda: render_scale(benchmark),
        context=context,
        output=output,
        report=report,
        as_json=as_json,
    )
