"""fgnet-export: a checkpoint in, a bundle that any inference server runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from fgnet.cli.console import guarded, optional_packages, print_json, print_renderable, print_text, run_app, say
from fgnet.cli.export_modes import refuse_unread
from fgnet.cli.export_parity import parity_crop, parity_table, verify_bundle

if TYPE_CHECKING:
    from fgnet.engine.backends import Backend
    from fgnet.engine.bundle import Bundle, Precision
    from fgnet.engine.gray_reader import GraySource

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

_GRAPHS, _DECODING = "Graphs and engines", "Recommended decoding"
_PARITY, _BUNDLES = "Parity", "What to do with a bundle"


@app.command()
@guarded
def export(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint of fgnet-train (model.pt).", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to create.", show_default="MODEL's name + .bundle")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="MODEL's name")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the graphs: fp32, fp16, bf16, int8; several by commas.",
            show_default="fp32, or the bundle's first",
            rich_help_panel=_GRAPHS,
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="To compare, and to build engines for: onnxruntime, openvino, tensorrt, tensorrt-rtx, ...",
            show_default="every installed one",
            rich_help_panel=_GRAPHS,
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="GPUs to build engines for, as sm89,sm90; the one that --triton is to serve.",
            show_default="the one here",
            rich_help_panel=_GRAPHS,
        ),
    ] = None,
    sections: Annotated[
        int | None,
        typer.Option(help="Of one encoder call.", show_default="the stride's z", rich_help_panel=_GRAPHS, min=1),
    ] = None,
    single: Annotated[
        bool, typer.Option("--single", help="Add the whole network as one graph.", rich_help_panel=_GRAPHS)
    ] = False,
    calibration: Annotated[
        str | None, typer.Option(help="Address of gray that int8 is calibrated on.", rich_help_panel=_GRAPHS)
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option(
            help="Keep the checkpoint in the bundle, for the eager baseline and fine-tuning.", rich_help_panel=_GRAPHS
        ),
    ] = True,
    stride: Annotated[
        str | None, typer.Option(help="Recommended voxels z,y,x between patches.", show_default="half a patch")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Agglomeration score, from validation.",
            show_default="the best of MODEL's validation, or 0.5",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    fragments: Annotated[
        str | None,
        typer.Option(
            help="sections or affinity.", show_default="of MODEL's validation, or sections", rich_help_panel=_DECODING
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            help="quantile or mean.", show_default="of MODEL's validation, or quantile", rich_help_panel=_DECODING
        ),
    ] = None,
    quantile: Annotated[
        int | None,
        typer.Option(help="Percent.", show_default="of MODEL's validation, or 50", rich_help_panel=_DECODING),
    ] = None,
    mean_threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="The same for scores by mean where --scoring is another: for --decoder blockwise.",
            show_default="unknown",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    parity_volume: Annotated[
        str | None,
        typer.Option(help="Address of gray to compare on.", show_default="synthetic neuropil", rich_help_panel=_PARITY),
    ] = None,
    parity_roi: Annotated[
        str | None,
        typer.Option(
            help="Region of it, z0:z1,y0:y1,x0:x1.",
            show_default="the middle, 24,256,384 voxels at most",
            rich_help_panel=_PARITY,
        ),
    ] = None,
    parity_labels: Annotated[
        str | None,
        typer.Option(help="Address of its true labels, in the same region.", rich_help_panel=_PARITY),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write what is not equal to eager PyTorch, marked as failed, or cannot be compared here.",
            rich_help_panel=_PARITY,
        ),
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(help="BUNDLE: repeat the comparison on this machine.", rich_help_panel=_BUNDLES)
    ] = None,
    inspect: Annotated[
        Path | None,
        typer.Option(help="BUNDLE: shapes, parameters, FLOPs and precisions.", rich_help_panel=_BUNDLES),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(help="DIR: write a Triton model repository from the bundle.", rich_help_panel=_BUNDLES),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle of --triton, where none is exported.", rich_help_panel=_BUNDLES)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Export a trained FGNet as ONNX graphs and engines; write them if they agree with eager PyTorch.

    Try it: fgnet-export model.pt -o model.bundle, then fgnet-run volume.zarr --model model.bundle.
    """
    refuse_unread(context)
    backends = _listed("backend", backend)
    precisions = cast("tuple[Precision, ...] | None", _listed("precision", precision))
    architectures = tuple(one.strip() for one in architecture.split(",")) if architecture else ()
    if triton is not None and len(architectures) > 1:
        raise typer.BadParameter("a repository serves one kind of GPU", param_hint="--architecture")
    if verify is not None:
        crop = parity_crop(parity_volume, parity_labels, parity_roi)
        verify_bundle(_load(verify), backends, *crop, as_json=as_json)
        return
    if inspect is not None:
        _inspect(inspect, as_json)
        return
    if model is None:
        if triton is None or bundle is None:
            raise typer.BadParameter("give a checkpoint, or --verify, --inspect, or --triton with --bundle")
        files = _write_triton(_load(bundle), triton, backends, precisions, architectures, overwrite)
        if as_json:
            print_json({"triton": str(triton), "files": files})
        else:
            print_text(_served(triton, files))
        return
    with optional_packages("train"):
        from fgnet.export.bundle_writer import ExportOptions, export_bundle
        from fgnet.export.recommended_decoding import DecodingWishes
    from fgnet.volumes.geometry import parse_triple

    target = output or model.with_suffix(".bundle")
    with _calibration(calibration) as tissue:
        options = ExportOptions(
            name=name,
            stride=parse_triple(stride, "--stride") if stride else None,
            precisions=precisions or ("fp32",),
            backends=cast("tuple[Backend, ...] | None", backends),
            sections=sections,
            single=single,
            architectures=architectures,
            calibration=tissue,
            keep_checkpoint=checkpoint,
            decoding=DecodingWishes(fragments, scoring, quantile, threshold, mean_threshold),
            force=force,
            overwrite=overwrite,
        )
        say(f"exporting {model}")
        written = export_bundle(model, target, options, *parity_crop(parity_volume, parity_labels, parity_roi), say)
    served = None if triton is None else _write_triton(written, triton, backends, precisions, architectures, overwrite)
    parity = [dict(report) for report in written.manifest.parity]
    if as_json:
        sizes = {file: (written.path / file).stat().st_size for file in written.manifest.files}
        result = {"output": str(target), "name": written.manifest.name, "files": sizes, "parity": parity}
        print_json(result if served is None else result | {"triton": str(triton)})
        return
    print_renderable(parity_table(parity))
    print_text(f"{target}: {_bytes(written)}, {', '.join(graphs.precision for graphs in written.manifest.graphs)}")
    if triton is not None and served is not None:
        print_text(_served(triton, served))


def _inspect(path: Path, as_json: bool) -> None:
    with optional_packages("train"):
        from fgnet.export.inspection import inspect_bundle
        from fgnet.export.inspection_tables import render

    inspection = inspect_bundle(_load(path))
    if as_json:
        print_json(inspection.to_dict())
    else:
        print_renderable(render(inspection))


def _write_triton(
    bundle: Bundle,
    folder: Path,
    backends: tuple[str, ...] | None,
    precisions: tuple[Precision, ...] | None,
    architectures: tuple[str, ...],
    overwrite: bool,
) -> list[str]:
    with optional_packages("train"):
        from fgnet.export.triton import write_triton_repository

    files = write_triton_repository(
        bundle,
        folder,
        backend="tensorrt" if "tensorrt" in (backends or ()) else "onnxruntime",
        precision=precisions[0] if precisions else None,
        architecture=architectures[0] if architectures else None,
        overwrite=overwrite,
    )
    return [str(file) for file in files]


def _served(folder: Path, files: list[str]) -> str:
    return f"{folder}: {len(files)} files; its README.md says how a client feeds it"


def _load(path: Path) -> Bundle:
    from fgnet.engine.bundle import load_bundle

    return load_bundle(path)


@contextmanager
def _calibration(address: str | None) -> Iterator[GraySource | None]:
    """Gray that is read when it is needed."""
    if address is None:
        yield None
        return
    from fgnet.engine.pipeline import GrayVolume
    from fgnet.volumes.reading import check_gray, open_volume

    with open_volume(address, holds="gray") as volume:
        check_gray(volume)
        yield GrayVolume(volume)


def _listed(option: Literal["backend", "precision"], text: str | None) -> tuple[str, ...] | None:
    """The entries of a list, each of which has to be one of those that there are."""
    from fgnet.engine.backends import BACKENDS
    from fgnet.engine.bundle import PRECISIONS

    if text is None:
        return None
    allowed: tuple[str, ...] = BACKENDS if option == "backend" else PRECISIONS
    entries = tuple(entry.strip() for entry in text.split(","))
    for entry in entries:
        if entry not in allowed:
            raise typer.BadParameter(f"{entry!r} is not one of {', '.join(allowed)}", param_hint=f"--{option}")
    return entries


def _bytes(bundle: Bundle) -> str:
    return f"{sum((bundle.path / file).stat().st_size for file in bundle.manifest.files) / 1e6:.1f} MB"


def main() -> None:
    """Entry point of fgnet-export."""
    run_app(app)


if __name__ == "__main__":
    main()
