"""The picture of `fgnet-eval curve --plot`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def save_curve(path: Path, result: dict[str, Any]) -> None:
    """Draw VOI, its parts and the adapted Rand error by threshold, and the threshold that was chosen.

    Args:
        path: PNG to be written.
        result: as `fgnet-eval curve --json` prints it.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from fgnet.engine.atomic_file import write_atomically
    from fgnet.volumes.output_store import explained

    rows, best, test = result["curve"], result["best_threshold"], result["test"]
    thresholds = [row["threshold"] for row in rows]
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    information, pairs = figure.subplots(1, 2)
    for name, label, style in (("voi", "VOI", "o-"), ("voi_split", "split", "--"), ("voi_merge", "merge", ":")):
        information.plot(thresholds, [row[name] for row in rows], style, label=label)
    information.set(xlabel="threshold", ylabel="bits", title=f"variation of information, {result['region']}")
    pairs.plot(thresholds, [row["arand"] for row in rows], "o-", color="tab:red", label="ARAND")
    pairs.plot(thresholds, [row["cremi_score"] for row in rows], "--", color="tab:gray", label="CREMI score")
    pairs.set(xlabel="threshold", title="adapted Rand error")
    for axes, name in ((information, "voi"), (pairs, "arand")):
        axes.axvline(best, color="black", linewidth=0.8, alpha=0.6)
        axes.set_ylim(bottom=0)
        if test is not None:
            axes.plot([best], [test[name]], "*", markersize=13, color="black", label="test")
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False)
        axes.grid(alpha=0.3)
    tested = "" if test is None else f"; test on {test['region']}"
    chosen = f"lowest {result['best_by'].replace('_', ' ')} at {best:g}"
    figure.suptitle(
        f"{result['decoder']}, {result['fragments']}, {result['scoring']}: {chosen}{tested}", fontsize="medium"
    )
    data = io.BytesIO()
    figure.savefig(data, format="png")
    with explained(path):
        write_atomically(path, data.getvalue())
