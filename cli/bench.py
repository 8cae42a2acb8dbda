"""fgnet-bench: how fast it is on this machine, and how it was measured."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from fgnet.cli.bench_pipeline import OptionsOfRunLast, pipeline
from fgnet.cli.console import guarded, print_json, print_renderable, run_app, say
from fgnet.volumes.errors import BackendError, OutputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fgnet.engine.bundle import BundleManifest
    from fgnet.engine.torch_runner import Device

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def bench() -> None:
    """Measure FGNet on this machine."""


@app.command()
@guarded
def engine(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle of fgnet-export.", show_default="nano, which ships with fgnet")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="openvino, onnxruntime, tensorrt, torch-compile, ...; several by commas. Eager fp32 always runs too.",
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
        int, typer.Option(min=1, help="Most windows of each row; fewer are run once the last three agree.")
    ] = 7,
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the JSON object, beside what is printed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
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
    _require_folder(output)
    loaded = load_bundle(bundle or default_bundle())
    plan = plan_rows(
        loaded, backends=_listed(backend), precisions=_listed(precision), device=cast("Device | None", device)
    )
    gray, source = _gray(volume, loaded.manifest, blocks)
    options = EngineOptions(blocks=blocks, repeats=repeats, threads=threads, apart=apart)
    benchmark = measure_engines(loaded, gray, plan, options, source=source, say=say)
    if output is not None:
        _write(output, benchmark.to_dict())
    if as_json:
        print_json(benchmark.to_dict())
    else:
        print_renderable(render(benchmark))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@guarded
def scale(
    context: typer.Context,
    shape: Annotated[str, typer.Option(help="z,y,x voxels of the smallest volume.")] = "64,512,512",
    factors: Annotated[str, typer.Option(help="How many times as large the volumes are, by commas.")] = "1,2,4",
    axis: Annotated[str, typer.Option(help="z, y or x: along which they grow.")] = "z",
    folder: Annotated[
        Path | None, typer.Option(help="For the volumes, which are deleted.", show_default="a temporary one")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the JSON object, beside what is printed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Run fgnet-run on volumes of growing size: time, memory, and how both grow. Its options come after "--".

    Try it: fgnet-bench scale -- --decoder none --backend openvino.
    """
    from fgnet.benchmarks.scale_benchmark import measure_scale
    from fgnet.benchmarks.scale_table import render_scale
    from fgnet.volumes.geometry import parse_triple

    if axis not in ("z", "y", "x"):
        raise typer.BadParameter(f"{axis!r} is no axis", param_hint="--axis")
    _require_folder(output)
    sizes = sorted(_whole_numbers(factors, "--factors"))
    with ExitStack() as cleanup:
        place = folder or Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        base = parse_triple(shape, "--shape")
        benchmark = measure_scale(base, sizes, "zyx".index(axis), context.args, folder=place, say=say)
    if output is not None:
        _write(output, benchmark.to_dict())
    if as_json:
        print_json(benchmark.to_dict())
    else:
        print_renderable(render_scale(benchmark))


@app.command()
@guarded
def decode(
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
    repeats: Annotated[int, typer.Option(min=1, help="Of every row; all rows in turn.")] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="For the volumes, which are deleted.", show_default="a temporary one")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the JSON object, beside what is printed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Decode affinities by waterz and by the blockwise decoder, from disk to disk.

    Try it: fgnet-bench decode, or fgnet-run V --decoder none -o aff.zarr and fgnet-bench decode --affinities aff.zarr.
    """
    from fgnet.benchmarks.decode_benchmark import DecodeOptions, measure_decoders
    from fgnet.benchmarks.decode_table import render_decode
    from fgnet.benchmarks.tissue import predicted_affinities, read_affinities
    from fgnet.cli.run_streamer import build_network
    from fgnet.volumes.geometry import parse_triple

    kinds = _listed(fragments)
    if not kinds or not set(kinds) <= {"affinity", "sections"}:
        raise typer.BadParameter(f"{fragments!r} is not affinity, sections or both", param_hint="--fragments")
    _require_folder(output)
    options = DecodeOptions(
        [parse_triple(shape, "--shape") for shape in shapes.split(";")],
        cast("list[Literal['affinity', 'sections']]", kinds),
        _whole_numbers(workers, "--workers"),
        threshold,
        repeats,
    )
    if affinities is None:
        say("nano runs on synthetic neuropil")
        tissue, source = predicted_affinities(build_network), "affinities of nano on synthetic neuropil"
    else:
        tissue, source = read_affinities(affinities), affinities
    with ExitStack() as cleanup:
        place = folder or Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        benchmark = measure_decoders(tissue, options, source=source, folder=place, say=say)
    if output is not None:
        _write(output, benchmark.to_dict())
    if as_json:
        print_json(benchmark.to_dict())
    else:
        print_renderable(render_decode(benchmark))


app.command(cls=OptionsOfRunLast)(guarded(pipeline))


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _whole_numbers(text: str, option: str) -> list[int]:
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in _listed(text)]
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{text!r} are not whole numbers from 1 on", param_hint=option)
    return numbers


def _require_folder(output: Path | None) -> None:
    """Refuse a file that could not be written once everything is measured."""
    if output is not None and not output.absolute().parent.is_dir():
        raise OutputError("the folder does not exist", where=output, remedy="make it, or name another one")


def _gray(address: str | None, manifest: BundleManifest, blocks: int) -> tuple[npt.NDArray[np.uint8], str]:
    """The column that is run on, and what it is in words."""
    from fgnet.benchmarks.tissue import column_of, synthetic_column
    from fgnet.volumes.reading import open_volume

    if address is None:
        say("making synthetic neuropil")
        return synthetic_column(manifest, blocks), "synthetic neuropil"
    with open_volume(address) as volume:
        return column_of(volume, manifest, blocks), volume.name


def _write(path: Path, result: dict[str, Any]) -> None:
    from fgnet.engine.atomic_file import write_atomically

    write_atomically(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def main() -> None:
    """Entry point of fgnet-bench."""
    run_app(app)


if __name__ == "__main__":
    main()
