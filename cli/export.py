"""fgnet-export: a checkpoint in, a bundle that any inference server runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgnet.cli.console import guarded, optional_packages, print_json, print_text, run_app, say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@guarded
def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint of fgnet-train (model.pt).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to create.", show_default="MODEL's name + .bundle")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="MODEL's name")] = None,
    stride: Annotated[
        str | None, typer.Option(help="Recommended voxels z,y,x between patches.", show_default="half a patch")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Recommended agglomeration threshold, from validation data.")
    ] = 0.5,
    fragments: Annotated[str, typer.Option(help="Recommended fragments: sections or affinity.")] = "sections",
    scoring: Annotated[str, typer.Option(help="Recommended scoring: quantile or mean.")] = "quantile",
    quantile: Annotated[int, typer.Option(help="Recommended quantile, percent.")] = 50,
    checkpoint: Annotated[
        bool, typer.Option(help="Keep the checkpoint in the bundle, for the eager baseline and fine-tuning.")
    ] = True,
    parity_volume: Annotated[
        str | None,
        typer.Option(help="Address of gray to compare on.", show_default="synthetic neuropil"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bundle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Export a trained FGNet as ONNX, compare it with eager PyTorch, and write the bundle if they agree.

    Try it: fgnet-export model.pt -o model.bundle, then fgnet-run volume.zarr --model model.bundle.
    """
    with optional_packages("train"):
        from fgnet.export.bundle_writer import ExportOptions, export_bundle, volume_patches
    from fgnet.engine.bundle import Decoding
    from fgnet.postproc.waterz_decoder import WaterzOptions
    from fgnet.volumes.geometry import parse_triple

    WaterzOptions(fragments=fragments, scoring=scoring, quantile=quantile)  # type: ignore[arg-type]
    options = ExportOptions(
        name=name,
        stride=parse_triple(stride, "--stride") if stride else None,
        keep_checkpoint=checkpoint,
        decoding=Decoding(fragments, scoring, quantile, threshold),
        overwrite=overwrite,
    )
    target = output or model.with_suffix(".bundle")
    say(f"exporting {model}")
    patches = None if parity_volume is None else volume_patches(parity_volume, model)
    bundle = export_bundle(model, target, options, patches)
    parity = bundle.manifest.parity
    if as_json:
        files = {file: (bundle.path / file).stat().st_size for file in bundle.manifest.files}
        print_json({"output": str(target), "name": bundle.manifest.name, "files": files, "parity": parity})
        return
    print_text(
        f"{target}: {parity['backend']} {parity['precision']} agrees with eager PyTorch on {parity['patches']} patches"
        f" (largest difference {parity['largest']:.2g}, mean {parity['mean']:.2g})"
    )


def main() -> None:
    """Entry point of fgnet-export."""
    run_app(app)


if __name__ == "__main__":
    main()
