"""fgnet-bench decode: waterz and the blockwise decoder, from disk to disk."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from fgnet.cli.bench_options import AsJson, Folder, Output, Repeats, Report, listed, whole_numbers, working_folder
from fgnet.cli.bench_result import publish, require_places
from fgnet.cli.console import say


def decode(
    context: typer.Context,
    shapes: Annotated[
        str, typer.Option("--shape", help="z,y,x voxels of the volume; several by semicolons.")
    ] = "64,512,512",
    affinities: Annotated[
        str | None,
        typer.Option(
            help="Address of uint8 affinities (3, z, y, x) to make the volumes of.",
            show_default="nano's of synthetic neuropil",
        ),
    ] = None,
    fragments: Annotated[str, typer.Option(help="affinity, sections; both by commas.")] = "affinity,sections",
    workers: Annotated[str, typer.Option(help="Of the blockwise decoder; several by commas.")] = "1,2",
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the agglomeration.")] = 0.8,
    repeats: Repeats = 3,
    folder: Folder = None,
    output: Output = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Decode affinities by waterz and by the blockwise decoder, from disk to disk.

    Try it: fgnet-bench decode, or fgnet-run V --decoder none -o aff.zarr and fgnet-bench decode --affinities aff.zarr.
    """
    from fgnet.benchmarks.decode_benchmark import DecodeOptions, measure_decoders
    from fgnet.benchmarks.decode_table import render_decode
    from fgnet.benchmarks.result_file import without_folders
    from fgnet.benchmarks.tissue import predicted_affinities, read_affinities
    from fgnet.cli.run_streamer import build_network
    from fgnet.volumes.geometry import parse_triple

    kinds = listed(fragments)
    if not kinds or not set(kinds) <= {"affinity", "sections"}:
        raise typer.BadParameter(f"{fragments!r} is not affinity, sections or both", param_hint="--fragments")
    require_places(output, report)
    options = DecodeOptions(
        [parse_triple(shape, "--shape") for shape in shapes.split(";")],
        cast("list[Literal['affinity', 'sections']]", kinds),
        whole_numbers(workers, "--workers"),
        threshold,
        repeats,
    )
    if affinities is None:
        say("nano runs on synthetic neuropil")
        tissue, source = predicted_affinities(build_network), "affinities of nano on synthetic neuropil"
    else:
        tissue, source = read_affinities(affinities), without_folders(affinities)
    with working_folder(folder) as place:
        benchmark = measure_decoders(tissue, options, source=source, folder=place, say=say)
    publish(
        benchmark.to_dict(),
        lambda: render_decode(benchmark),
        context=context,
        output=output,
        report=report,
        as_json=as_json,
    )
