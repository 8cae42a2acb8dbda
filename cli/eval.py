"""fgnet-eval: how far a segmentation is from the ground truth, by VOI and ARAND."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from fgnet.cli.console import guarded, print_json, print_text, run_app, say
from fgnet.cli.eval_curve import curve
from fgnet.cli.eval_inputs import margin_of, open_truth, require_places

if TYPE_CHECKING:
    from fgnet.postproc.comparison import Comparison

# The names of `fgnet.postproc.protocols`, which is not imported before it is needed; a test holds them equal.
Protocol = Literal["standard", "snemi3d", "cremi"]

_WORST = 10


class _ScoreByDefault(TyperGroup):
    """Takes `fgnet-eval SEG GT` for `fgnet-eval score SEG GT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["score", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ScoreByDefault, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def evaluate() -> None:
    """Compare segmentations with the ground truth.

    fgnet-eval SEG GT is short for fgnet-eval score SEG GT, whose options fgnet-eval score --help lists.
    """


@app.command()
@guarded
def score(
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
            "cremi: as in that challenge; id 0 is scored. Voxels with the largest uint64, or -1, never are."
        ),
    ] = "standard",
    border: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="NM",
            help="Do not score voxels this near, in nm, to a true boundary in their section.",
            show_default="25 for cremi, else 0",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Volume of GT's extent, or a coarser one: 0 where nobody labelled; not scored."
        ),
    ] = None,
    objects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What every true object costs, and the largest splits and merges, as .json; or as .csv, with the"
            " latter in FILE's name + .splits.csv and .merges.csv.",
        ),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Print the N largest splits and merges, and where to look at them.",
            show_default=f"{_WORST} with --objects",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Score a segmentation: variation of information (bits), adapted Rand error, and what is worst.

    Try it: fgnet-eval segmentation.zarr truth.h5:labels --crop 200:250,:,: --min-size 100 --worst 5
    """
    from fgnet.cli.eval_report import error_rows, error_tables, object_files, write_objects

    margin = margin_of(protocol, border)
    if objects is not None and objects.suffix not in (".csv", ".json"):
        raise typer.BadParameter(f"{objects.name!r} ends neither in .csv nor in .json", param_hint="--objects")
    if objects is not None:
        require_places(*object_files(objects))
        worst = _WORST if worst is None else worst
    with ExitStack() as closing:
        compared, notes = _compare(closing, segmentation, (ground_truth, mask), crop, min_size, protocol, margin)
        scores = compared.scores
        result: dict[str, Any] = {
            "voi": scores.voi,
            "voi_split": scores.voi_split,
            "voi_merge": scores.voi_merge,
            "arand": scores.arand,
            "precision": scores.precision,
            "recall": scores.recall,
            "cremi_score": scores.cremi_score,
            "voxels": scores.voxels,
            "unlabelled": compared.unlabelled,
            "segments": scores.segments,
            "objects": scores.objects,
            "protocol": protocol,
            "crop": str(compared.region),
            "min_size": min_size,
            "border": margin,
            "notes": notes,
        }
        errors = error_rows(compared, worst) if worst is not None else {}
    # Neither a full disk nor a reader of stdout that went away may cost what the other would get.
    try:
        if as_json:
            print_json({**result, **errors})
        else:
            print_text(_table(result))
            error_tables(errors)
    finally:
        if objects is not None:
            write_objects(objects, compared, errors)


app.command()(curve)


def _compare(
    closing: ExitStack,
    segmentation: str,
    labelled: tuple[str, str | None],
    crop: str | None,
    min_size: int,
    protocol: Protocol,
    border: float,
) -> tuple[Comparison, list[str]]:
    """Opens what is compared, and what is worth saying of it; labelled is the ground truth and its mask.

    Raises:
        FGNetError: what the volumes, the crop or the border are refused for.
    """
    from fgnet.postproc.comparison import Comparison
    from fgnet.postproc.protocols import PROTOCOLS
    from fgnet.volumes.geometry import parse_roi
    from fgnet.volumes.matching import matching_region, placement_note
    from fgnet.volumes.reading import open_volume

    segments = closing.enter_context(open_volume(segmentation, holds="labels"))
    truth, known = open_truth(closing, *labelled)
    region = truth.box if crop is None else parse_roi(crop, truth.box.shape)
    inside = matching_region(segments, truth, region)
    if note := placement_note(segments, truth):
        say(f"note: {note}", "yellow")
    compared = Comparison(segments, truth, region, inside, PROTOCOLS[protocol], min_size, border, known)
    return compared, [] if note is None else [note]


def _table(result: dict[str, Any]) -> str:
    """The scores for people, four lines."""
    rules = [result["protocol"], f"region {result['crop']}"]
    rules += [f"ids of at least {result['min_size']} voxels"] if result["min_size"] > 1 else []
    rules += [f"without {result['border']:g} nm at boundaries"] if result["border"] else []
    rules += [f"without {result['unlabelled']} unlabelled voxels"] if result["unlabelled"] else []
    return (
        f"VOI    {result['voi']:.4f}  (split {result['voi_split']:.4f} + merge {result['voi_merge']:.4f})\n"
        f"ARAND  {result['arand']:.4f}  (precision {result['precision']:.4f}, recall {result['recall']:.4f})\n"
        f"CREMI  {result['cremi_score']:.4f}  (square root of VOI x ARAND)\n"
        f"{result['segments']} segments on {result['objects']} objects, {result['voxels']} voxels: {', '.join(rules)}"
    )


def main() -> None:
    """The command's entry point."""
    run_app(app)
