"""What `fgnet-eval curve` prints and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgnet.cli.console import print_renderable, print_text
from fgnet.cli.eval_report import csv_text, write_text

if TYPE_CHECKING:
    from fgnet.postproc.threshold_curve import CurvePoint

_FIGURES = ("voi", "voi_split", "voi_merge", "arand", "cremi_score", "segments")


def curve_row(point: CurvePoint) -> dict[str, Any]:
    """A point of the curve as plain data."""
    return {"threshold": point.threshold, **{name: getattr(point.scores, name) for name in _FIGURES}}


def write_curve(result: dict[str, Any], plot: Path | None, table: Path | None) -> None:
    """Write the curve as a picture and as a table, where these are wanted.

    Raises:
        OutputError: a file cannot be written.
    """
    if table is not None:
        rows = result["curve"]
        as_csv = table.suffix == ".csv"
        text = csv_text(list(rows[0]), [list(row.values()) for row in rows]) if as_csv else json.dumps(result, indent=1)
        write_text(table, text if as_csv else f"{text}\n")
    if plot is not None:
        from fgnet.cli.eval_plot import save_curve

        save_curve(plot, result)


def print_curve(result: dict[str, Any]) -> None:
    """Print the curve, what it was decoded by, and what came of the best threshold, for people."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("threshold", "VOI", "split", "merge", "ARAND", "CREMI", "segments"):
        table.add_column(name, justify="right")
    for row in result["curve"]:
        mark = " *" if row["threshold"] == result["best_threshold"] else "  "
        values = [f"{row[name]:.4f}" for name in _FIGURES[:-1]]
        table.add_row(f"{row['threshold']:g}{mark}", *values, f"{row['segments']:,}")
    print_renderable(table)
    scores = "mean affinity" if result["quantile"] is None else f"{result['quantile']} % quantile"
    print_text(f"decoder {result['decoder']}, fragments {result['fragments']}, {scores}")
    by, best = result["best_by"].replace("_", " "), f"{result['best_threshold']:g}"
    if (test := result["test"]) is None:
        print_text(f"* lowest {by}, on the region scored, {result['region']}: no test score (see --choose-on)")
        return
    print_text(
        f"* lowest {by} on {result['region']}; test on {test['region']} at {best}:"
        f" VOI {test['voi']:.4f} (split {test['voi_split']:.4f} + merge {test['voi_merge']:.4f}),"
        f" ARAND {test['arand']:.4f}, CREMI {test['cremi_score']:.4f}"
    )
