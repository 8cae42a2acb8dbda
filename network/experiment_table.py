"""The figures of a grid of runs as a Markdown table, beside the paper's as far as they are known here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgnet.engine.atomic_file import write_atomically
from fgnet.volumes.errors import OutputError

TABLE, RESULTS = "table.md", "results.json"

# VOI and ARAND of arXiv 2511.13063, frozen and fine-tuned SAM2, by data set. Of its ablations no figures are at hand.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "ac3ac4": {"frozen": (0.910, 0.096), "fine_tuned": (0.797, 0.069)},
    "cremi-a": {"frozen": (0.643, 0.101), "fine_tuned": (0.561, 0.075)},
    "cremi-b": {"frozen": (0.778, 0.061), "fine_tuned": (0.677, 0.040)},
    "cremi-c": {"frozen": (1.201, 0.149), "fine_tuned": (1.021, 0.081)},
    "wafer4": {"frozen": (0.729, 0.042), "fine_tuned": (0.533, 0.028)},
}

_MEASURES = ("voi", "voi_split", "voi_merge", "arand")


def paper_figures(experiment: str, data_set: str | None) -> dict[str, tuple[float, float]]:
    """VOI and ARAND of the paper by cell, for what stands beside them; nothing where none are at hand."""
    return PAPER.get(data_set or "", {}) if experiment == "adaptation" else {}


def write_tables(
    folder: Path,
    name: str,
    title: str,
    results: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    data_set: str | None = None,
) -> None:
    """Write `table.md` and `results.json` of the runs that are finished.

    Args:
        folder: of the grid.
        name: of the experiment.
        title: of the table.
        results: of the runs: cell, label, seed, seconds, options, and the figures `validation` or `test`.
        facts: about all of them, a line each.
        data_set: one of the paper's, if it is one.

    Raises:
        OutputError: they cannot be written.
    """
    known = paper_figures(name, data_set)
    rows = summaries(results)
    content = {"experiment": name, "facts": dict(facts), "rows": rows, "runs": list(results)}
    texts = {
        RESULTS: json.dumps(content, indent=2) + "\n",
        TABLE: render(title, rows, facts, known),
    }
    for file, text in texts.items():
        try:
            write_atomically(folder / file, text.encode())
        except OSError as error:
            raise OutputError(
                f"the table cannot be written ({error.strerror})", where=folder / file, remedy="free space"
            ) from error


def summaries(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per cell: mean and standard deviation (None for a single seed) of each figure over the seeds."""
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        cells.setdefault(str(result["cell"]), []).append(result)
    rows = []
    for cell, runs in cells.items():
        figures = [run.get("test", run["validation"]) for run in runs]
        row: dict[str, Any] = {"cell": cell, "label": runs[0]["label"], "seeds": [run["seed"] for run in runs]}
        for measure in _MEASURES:
            values = [float(found[measure]) for found in figures]
            row[measure] = statistics.mean(values)
            row[f"{measure}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        row["seconds"] = statistics.mean(float(run["seconds"]) for run in runs)
        rows.append(row)
    return rows


def render(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    known: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """The table as Markdown, under a head that says what it was made of."""
    known = known or {}
    headings = ["", "VOI", "split", "merge", "ARAND", "seeds", "s per run", *(["paper's VOI / ARAND"] if known else [])]
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines.append("| " + " | ".join(headings) + " |")
    lines.append("|" + "---|" * len(headings))
    for row in rows:
        columns = [
            str(row["label"]),
            *(_with_spread(row, measure) for measure in _MEASURES),
            str(len(row["seeds"])),
            f"{row['seconds']:.0f}",
        ]
        if known:
            paper = known.get(str(row["cell"]))
            columns.append("" if paper is None else f"{paper[0]:.3f} / {paper[1]:.3f}")
        lines.append("| " + " | ".join(columns) + " |")
    spread = "Mean ± standard deviation over the seeds. " if any(len(row["seeds"]) > 1 for row in rows) else ""
    return "\n".join([*lines, "", f"{spread}VOI in bits, lower is better. Each run keeps its best checkpoint.", ""])


def _with_spread(row: Mapping[str, Any], measure: str) -> str:
    spread = row[f"{measure}_spread"]
    return f"{row[measure]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
