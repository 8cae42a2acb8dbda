"""fgnet-eval curve: scores by agglomeration threshold, and the score at the threshold that validation data chose."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from fgnet.cli.console import guarded, optional_packages, print_json, say
from fgnet.cli.eval_curve_report import curve_row, print_curve, write_curve
from fgnet.cli.eval_inputs import margin_of, open_truth, require_places
from fgnet.cli.run_decoding import DecodingRequest

if TYPE_CHECKING:
    from fgnet.engine.bundle import Decoding
    from fgnet.postproc.comparison import Known
    from fgnet.postproc.threshold_curve import CurvePoint
    from fgnet.postproc.waterz_decoder import WaterzOptions
    from fgnet.volumes.geometry import Box
    from fgnet.volumes.reading import Volume


@dataclass(frozen=True)
class _Scoring:
    """How every segmentation is made and scored."""

    thresholds: tuple[float, ...]
    decoder: Literal["waterz", "blockwise"]
    options: WaterzOptions
    protocol: Literal["standard", "snemi3d", "cremi"]
    min_size: int
    border: float


@dataclass(frozen=True, eq=False)
class _Data:
    """Affinities and ground truth of a region, which is in voxels of the truth; inside, in voxels of the affinities."""

    affinities: Volume
    truth: Volume
    known: Known | None
    region: Box
    inside: Box
    note: str | None


@guarded
def curve(
    affinities: Annotated[str, typer.Argument(metavar="AFFINITIES", help="Address of (3, z, y, x) affinities.")],
    ground_truth: Annotated[
        str,
        typer.Argument(metavar="GT", help="Address of the true labels. Affinities of a region are matched by offset."),
    ],
    thresholds: Annotated[
        str, typer.Option(metavar="FIRST:LAST:STEP", help="LAST is included; or a list, 0.3,0.5.")
    ] = "0.1:0.9:0.1",
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1,Y0:Y1,X0:X1", help="Decode and score this region of GT: the test region with --choose-on."
        ),
    ] = None,
    choose_on: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1,Y0:Y1,X0:X1",
            help="Region of GT, apart from --crop, on which the best threshold is chosen; only that is tested.",
        ),
    ] = None,
    choose_affinities: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Choose on these affinities instead; --choose-on is in their labels."),
    ] = None,
    choose_labels: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The true labels of --choose-affinities.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="As in fgnet-eval score: 0 where nobody labelled GT.")
    ] = None,
    choose_mask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The same of --choose-labels.", show_default="none")
    ] = None,
    by: Annotated[
        Literal["voi", "arand", "cremi_score"], typer.Option(help="What the best threshold has least of.")
    ] = "voi",
    decoder: Annotated[
        Literal["auto", "waterz", "blockwise"],
        typer.Option(help="As in fgnet-run; auto takes what it would take for the larger of both regions."),
    ] = "auto",
    model: Annotated[
        Path | None, typer.Option(help="Bundle whose settings are taken.", show_default="nano, which ships with fgnet")
    ] = None,
    fragments: Annotated[
        Literal["sections", "affinity"] | None, typer.Option(help="As in fgnet-run.", show_default="the model's")
    ] = None,
    scoring: Annotated[
        Literal["quantile", "mean"] | None, typer.Option(help="As in fgnet-run.", show_default="the model's")
    ] = None,
    quantile: Annotated[int | None, typer.Option(help="Percent, 10 to 95.", show_default="the model's")] = None,
    min_size: Annotated[
        int, typer.Option(min=0, metavar="N", help="Do not score true ids with fewer than N voxels in a region.")
    ] = 0,
    protocol: Annotated[
        Literal["standard", "snemi3d", "cremi"], typer.Option(help="As in fgnet-eval score.")
    ] = "standard",
    border: Annotated[
        float | None,
        typer.Option(min=0, metavar="NM", help="As in fgnet-eval score.", show_default="25 for cremi, else 0"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="The curve as a picture.")] = None,
    table: Annotated[Path | None, typer.Option(metavar="FILE", help="The curve as .csv or .json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Score the segmentations of many thresholds, and test the one that was best on other data.

    Try it: fgnet-eval curve affinities.zarr truth.h5:labels --choose-on 0:150,:,: --crop 150:250,:,: --plot curve.png
    """
    from fgnet.engine.bundle import default_bundle, load_bundle
    from fgnet.postproc.threshold_curve import best_point, parse_thresholds, refuse_shared_voxels

    if (choose_affinities is None) != (choose_labels is None):
        raise typer.BadParameter("one is nothing without the other", param_hint="--choose-affinities, --choose-labels")
    if choose_mask is not None and choose_labels is None:
        raise typer.BadParameter("without --choose-labels, --mask is of both regions", param_hint="--choose-mask")
    if table is not None and table.suffix not in (".csv", ".json"):
        raise typer.BadParameter(f"{table.name!r} ends neither in .csv nor in .json", param_hint="--table")
    if plot is not None:
        if plot.suffix != ".png":
            raise typer.BadParameter(f"{plot.name!r} does not end in .png", param_hint="--plot")
        with optional_packages("plot"):
            # Where it is missing, that is said before the work and not after it.
            importlib.import_module("matplotlib")
    require_places(plot, table)
    # As for a run at one of the thresholds: several at once are what fgnet-run takes the blockwise decoder for.
    request = DecodingRequest(decoder, None, fragments, scoring, quantile)
    advised = load_bundle(model or default_bundle()).manifest.decoding
    request.refuse_unread(advised)
    levels, margin = parse_thresholds(thresholds), margin_of(protocol, border)
    with ExitStack() as closing:
        test = _open(closing, affinities, (ground_truth, mask), crop)
        held_out = choose_on is not None or choose_labels is not None
        chosen_on = test
        if held_out:
            labelled = (ground_truth, mask) if choose_labels is None else (choose_labels, choose_mask)
            chosen_on = _open(closing, choose_affinities or affinities, labelled, choose_on)
            refuse_shared_voxels((chosen_on.truth, chosen_on.region), (test.truth, test.region))
            refuse_shared_voxels((chosen_on.affinities, chosen_on.inside), (test.affinities, test.inside))
        settings = _Scoring(
            levels,
            *_decoding(request, advised, (test, chosen_on)),
            protocol,
            min_size,
            margin,
        )
        points, unlabelled = _curve(chosen_on, settings)
        best = best_point(points, by)
        tested = None
        if held_out:
            (point,), missing = _curve(test, replace(settings, thresholds=(best.threshold,)))
            tested = {"region": str(test.region), "unlabelled": missing, **curve_row(point)}
    result = {
        "curve": [curve_row(point) for point in points],
        "region": str(chosen_on.region),
        "unlabelled": unlabelled,
        "best_threshold": best.threshold,
        "best_by": by,
        "test": tested,
        "decoder": settings.decoder,
        "fragments": settings.options.fragments,
        "scoring": settings.options.scoring,
        "quantile": settings.options.quantile if settings.options.scoring == "quantile" else None,
        "protocol": protocol,
        "min_size": min_size,
        "border": margin,
        "notes": sorted({data.note for data in (test, chosen_on) if data.note is not None}),
    }
    # Neither a full disk nor a reader of stdout that went away may cost what the other would get.
    try:
        if as_json:
            print_json(result)
        else:
            print_curve(result)
    finally:
        write_curve(result, plot, table)


def _decoding(
    request: DecodingRequest, advised: Decoding, decoded: Sequence[_Data]
) -> tuple[Literal["waterz", "blockwise"], WaterzOptions]:
    """The decoder that fgnet-run would take for the larger of the regions, and its settings.

    Raises:
        DecodingError: a value is out of range.
    """
    if request.decoder == "auto" and any(data.affinities.dtype.kind == "f" for data in decoded):
        # Floats are not fgnet-run's, and the other one reads 8-bit values alone.
        request = replace(request, decoder="waterz")
    voxels = max(data.region.size for data in decoded)
    if note := request.note(voxels, advised):
        say(note)
    taken = cast(Literal["waterz", "blockwise"], request.resolved(voxels, advised))
    return taken, request.scores(taken, advised)


def _open(closing: ExitStack, affinities: str, labelled: tuple[str, str | None], region: str | None) -> _Data:
    """Opens affinities and labels; labelled is the latter and their mask.

    Raises:
        FGNetError: what the volumes or the region are refused for.
    """
    from fgnet.volumes.errors import VolumeError
    from fgnet.volumes.geometry import parse_roi
    from fgnet.volumes.matching import matching_region, placement_note
    from fgnet.volumes.reading import open_volume

    made = closing.enter_context(open_volume(affinities, ndim=(4,)))
    if made.shape[0] != 3:
        raise VolumeError(f"there are {made.shape[0]} channels", where=made.address, remedy="give affinities z, y, x")
    truth, known = open_truth(closing, *labelled)
    box = truth.box if region is None else parse_roi(region, truth.box.shape)
    inside = matching_region(made, truth, box, called="volume of affinities")
    if note := placement_note(made, truth):
        say(f"note: {note}", "yellow")
    return _Data(made, truth, known, box, inside, note)


def _curve(data: _Data, settings: _Scoring) -> tuple[list[CurvePoint], int]:
    """The points of a region, and how many of its voxels nobody labelled."""
    import numpy as np

    from fgnet.postproc.comparison import read_truth
    from fgnet.postproc.threshold_curve import threshold_curve
    from fgnet.volumes.reading import UNLABELLED

    truth, masked = read_truth(data.truth, data.region, settings.border, data.known)
    if unlabelled := int(np.count_nonzero(truth == UNLABELLED)):
        say(f"{data.region}: {unlabelled} of {truth.size} voxels are labelled by nobody, and not scored")
    points = threshold_curve(
        data.affinities.read(data.inside),
        truth,
        settings.thresholds,
        decoder=settings.decoder,
        options=settings.options,
        protocol=settings.protocol,
        min_size=settings.min_size,
        masked=masked,
    )
    done = []
    for point in points:
        done.append(point)
        say(f"{data.region}: threshold {point.threshold:g}, VOI {point.scores.voi:.4f}")
    return done, unlabelled
