"""fgnet-sample: synthetic neuropil with its ground truth, as OME-Zarr."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fgnet.cli.console import guarded, print_json, run_app, say, stderr
from fgnet.cli.run_preview import check_picture

if TYPE_CHECKING:
    from fgnet.volumes.neuropil import Neuropil, NeuropilOptions

LABELS_GROUP = "labels/neurons"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _three(text: str, kind: type[int] | type[float], option: str) -> tuple[Any, Any, Any]:
    try:
        z, y, x = (kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{text!r} is not three {wanted} z,y,x", param_hint=f"--{option}") from None
    return z, y, x


@app.command()
@guarded
def sample(
    output: Annotated[
        Path, typer.Argument(help="Zarr store to create: the image at its root, the labels in labels/neurons.")
    ],
    shape: Annotated[str, typer.Option(help="Voxels z,y,x.")] = "64,512,512",
    voxel_size: Annotated[
        str, typer.Option(help="Nanometres z,y,x; a z twice as thick gives serial sections.")
    ] = "10,10,10",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    zarr_format: Annotated[int, typer.Option(min=2, max=3, help="3 (OME-NGFF 0.5) or 2 (OME-NGFF 0.4).")] = 3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a sample that is there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    preview: Annotated[Path | None, typer.Option(help="PNG of the middle section, raw beside labels.")] = None,
) -> None:
    """Make realistic synthetic neuropil: membranes, organelles, noise, and the neurons' true labels.

    Try it: fgnet-sample sample.zarr --shape 64,512,512, then fgnet-run sample.zarr.
    """
    extents, lengths = _three(shape, int, "shape"), _three(voxel_size, float, "voxel-size")
    from fgnet.volumes.neuropil import NeuropilOptions

    if preview is not None:
        check_picture(preview)
    options = NeuropilOptions(extents, lengths, seed)
    start = time.perf_counter()
    neuropil = _make(output, options, 3 if zarr_format == 3 else 2, overwrite)
    seconds = time.perf_counter() - start
    voxels = neuropil.raw.size
    result = {
        "output": str(output),
        "labels": str(output / LABELS_GROUP),
        "shape": list(options.shape),
        "voxel_size": list(options.voxel_size),
        "seed": seed,
        "objects": neuropil.objects,
        "seconds": round(seconds, 3),
        "voxels_per_second": round(voxels / seconds),
    }
    if as_json:
        print_json(result)
    else:
        say(f"{output}: {voxels / 1e6:.1f} Mvoxels, {neuropil.objects} neurites in {LABELS_GROUP}, {seconds:.1f} s")
    if preview is not None:
        _draw(neuropil, preview)


def _make(output: Path, options: NeuropilOptions, zarr_format: Literal[2, 3], overwrite: bool) -> Neuropil:
    """Makes room, then makes the tissue and writes it, with a progress bar."""
    import numpy as np
    from rich.progress import Progress

    from fgnet.volumes.geometry import Box
    from fgnet.volumes.neuropil import make_neuropil
    from fgnet.volumes.space import Space
    from fgnet.volumes.writing import create_image, create_labels

    space = Space(options.voxel_size)
    image = create_image(
        output,
        shape=options.shape,
        dtype=np.uint8,
        space=space,
        zarr_format=zarr_format,
        overwrite=overwrite,
        replaces=[LABELS_GROUP],
    )
    with Progress(console=stderr(), transient=True) as progress:
        task = progress.add_task("growing neurites", total=options.shape[0])

        def report(sections: int) -> None:
            progress.update(task, completed=sections, description="imaging sections")

        neuropil = make_neuropil(options, report)
        progress.update(task, description="writing")
        box = Box.from_shape(options.shape)
        image.write(box, neuropil.raw)
        image.build_pyramid()
        image.finish()
        labels = create_labels(
            output, shape=options.shape, dtype=np.uint32, space=space, zarr_format=zarr_format, group=LABELS_GROUP
        )
        labels.write(box, neuropil.labels)
        labels.build_pyramid()
        labels.finish()
    return neuropil


def _draw(neuropil: Neuropil, path: Path) -> None:
    """Writes a PNG of the middle section: raw on the left, labels in random colours on the right."""
    import numpy as np
    from PIL import Image

    from fgnet.volumes.errors import OutputError

    middle = neuropil.raw.shape[0] // 2
    colours = np.random.default_rng(0).integers(40, 255, (neuropil.objects + 1, 3)).astype(np.uint8)
    gray = np.repeat(neuropil.raw[middle][..., None], 3, axis=2)
    picture = np.concatenate([gray, colours[neuropil.labels[middle]]], axis=1)
    try:
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"the preview cannot be written: {error}", where=path, remedy="name a .png") from error


def main() -> None:
    """The command's entry point."""
    run_app(app)
