"""fgnet-eval: how far a segmentation is from the ground truth, by VOI and ARAND."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fgnet.cli.console import guarded, print_json, print_text, run_app, say

if TYPE_CHECKING:
    from fgnet.postproc.metrics import Scores
    from fgnet.volumes.geometry import Box
    from fgnet.volumes.reading import Volume

# The names of `fgnet.postproc.protocols`, which is not imported before it is needed; a test holds them equal.
Protocol = Literal["standard", "snemi3d", "cremi"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command()
@guarded
def evaluate(
    segmentation: Annotated[str, typer.Argument(metavar="SEG", help="Address of the segmentation.")],
    ground_truth: Annotated[
        str,
        typer.Argument(
            metavar="GT",
            help="Address of the true labels. A segmentation of another shape is matched by its offset in nm.",
        ),
    ],
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1,Y0:Y1,X0:X1", help="Score this region only, in voxels of GT; an open end is allowed."
        ),
    ] = None,
    min_size: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Do not score true ids with fewer than N voxels in the region scored."),
    ] = 0,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="standard: true id 0 is not scored. snemi3d: also, each voxel of segment 0 is a segment of its own. "
            "cremi: id 0 is scored, the largest uint64 is not."
        ),
    ] = "standard",
    border: Annotated[
        float,
        typer.Option(min=0, metavar="NM", help="Do not score voxels this near, in nm, to a true boundary (CREMI: 25)."),
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Score a segmentation against the ground truth: variation of information (bits) and adapted Rand error.

    Try it: fgnet-eval segmentation.zarr truth.h5:labels --crop 200:250,:,: --min-size 100
    """
    scores, region = _score(segmentation, ground_truth, crop, min_size, protocol, border)
    result = {
        "voi": scores.voi,
        "voi_split": scores.voi_split,
        "voi_merge": scores.voi_merge,
        "arand": scores.arand,
        "precision": scores.precision,
        "recall": scores.recall,
        "voxels": scores.voxels,
        "segments": scores.segments,
        "objects": scores.objects,
        "protocol": protocol,
        "crop": str(region),
        "min_size": min_size,
        "border": border,
    }
    if as_json:
        print_json(result)
    else:
        print_text(_table(result))


def _score(
    segmentation: str, ground_truth: str, crop: str | None, min_size: int, protocol: Protocol, border: float
) -> tuple[Scores, Box]:
    """Reads what is scored, and scores it.

    Returns:
        The scores, and the region in voxels of the ground truth.

    Raises:
        FGNetError: what the volumes, the crop or the border are refused for.
    """
    from fgnet.postproc.metrics import score
    from fgnet.postproc.protocols import border_mask
    from fgnet.volumes.errors import VolumeError
    from fgnet.volumes.geometry import parse_roi
    from fgnet.volumes.reading import check_labels, open_volume, read_labels

    with open_volume(segmentation) as segments, open_volume(ground_truth) as truth:
        check_labels(segments)
        check_labels(truth)
        region = truth.box if crop is None else parse_roi(crop, truth.box.shape)
        inside = _matching(segments, truth, region)
        if border and not truth.space.known:
            raise VolumeError(
                "the voxel size is not known, so a border in nm means nothing",
                where=truth.address,
                remedy="leave --border out, or write the resolution into the file",
            )
        ids = read_labels(truth, region)
        mask = border_mask(ids, border, truth.space.voxel_size) if border else None
        found = read_labels(segments, inside)
        return score(found, ids, protocol=protocol, min_size=min_size, border_mask=mask), region


def _matching(segments: Volume, truth: Volume, region: Box) -> Box:
    """The segmentation's voxels at a region of the ground truth.

    Volumes of one shape are matched voxel by voxel. A segmentation of another shape, such as that of a region of
    interest, is matched by its offset where both files say their voxel size.

    Raises:
        VolumeError: the shapes differ and nothing says how they lie, or the segmentation lacks a part of the region.
    """
    from fgnet.volumes.errors import VolumeError

    here, there = segments.space, truth.space
    if segments.shape == truth.shape:
        if here.known and there.known and here.offset != there.offset:
            say(
                f"note: offsets differ ({here.offset} and {there.offset} nm); scored voxel by voxel all the same",
                "yellow",
            )
        return region
    shapes = f"the segmentation has shape {segments.shape}, the ground truth {truth.shape}"
    if not (here.known and there.known) or here.voxel_size != there.voxel_size or here.offset == there.offset:
        raise VolumeError(shapes, where=segments.address, remedy="score a segmentation of the same region")
    offsets = zip(there.offset, here.offset, there.voxel_size, strict=True)
    z, y, x = (round((of_truth - of_segments) / size) for of_truth, of_segments, size in offsets)
    inside = region.shift((z, y, x))
    if not segments.box.contains(inside):
        covered = segments.box.shift((-z, -y, -x)).intersect(truth.box)
        remedy = f"give --crop {covered}" if covered.size else "they share no voxel"
        raise VolumeError(f"{shapes}, and covers only a part of {region}", where=segments.address, remedy=remedy)
    return inside


def _table(result: dict[str, Any]) -> str:
    """The scores for people, three lines."""
    rules = [result["protocol"], f"region {result['crop']}"]
    rules += [f"ids of at least {result['min_size']} voxels"] if result["min_size"] > 1 else []
    rules += [f"without {result['border']:g} nm at boundaries"] if result["border"] else []
    return (
        f"VOI    {result['voi']:.4f}  (split {result['voi_split']:.4f} + merge {result['voi_merge']:.4f})\n"
        f"ARAND  {result['arand']:.4f}  (precision {result['precision']:.4f}, recall {result['recall']:.4f})\n"
        f"{result['segments']} segments on {result['objects']} objects, {result['voxels']} voxels: {', '.join(rules)}"
    )


def main() -> None:
    """The command's entry point."""
    run_app(app)
