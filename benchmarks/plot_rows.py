"""Plots of rows that are timed as a whole: stages of the ways from a volume to its segmentation, and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgnet.benchmarks.plot_style import INK, OURS, REFERENCE, SERIES, bar_labels, new_figure, quiet
from fgnet.benchmarks.result_file import Result, seconds_of, size_text, speeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_stages(result: Result) -> Figure:
    """A bar for each way, divided into its stages; what they leave of the median is white."""
    from matplotlib.patches import Patch

    rows = result.rows[::-1]
    stages = list(dict.fromkeys(stage for row in result.rows for stage in row["stages"]))
    figure, (axes,) = new_figure(0.62 * len(rows) + 1.5)
    labels = []
    for place, row in enumerate(rows):
        known = seconds_of(row)
        axes.barh(place, known.middle, height=0.56, color="white", ec="#777777", linewidth=0.8)
        begin = 0.0
        for stage, seconds in row["stages"].items():
            colour = SERIES[stages.index(stage) % len(SERIES)]
            axes.barh(place, seconds, left=begin, height=0.56, color=colour, ec="white", linewidth=0.6)
            begin += seconds
        _range(axes, place, known.values)
        times = "" if row.get("ratio") is None else f", {row['ratio']:.3g} x"
        labels.append((max(known.most, begin), place, f"{known.middle:,.1f} s{times}"))
    bar_labels(axes, labels)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, max(end for end, _, _ in labels) * 1.18)
    axes.set_xlabel("seconds from the volume on disk to the segmentation on disk; x: times the first way's speed")
    quiet(axes, "x")
    kinds = [Patch(facecolor=SERIES[number % len(SERIES)], label=stage) for number, stage in enumerate(stages)]
    figure.legend(handles=kinds, loc="outside lower center", ncols=min(len(stages), 7))
    return figure


def draw_decoders(result: Result) -> Figure:
    """Megavoxels a second of each decoder on each volume, with every repeat."""
    from matplotlib.patches import Patch

    rows = result.rows[::-1]
    figure, (axes,) = new_figure(0.34 * len(rows) + 1.4)
    labels, names = [], []
    for place, row in enumerate(rows):
        known = speeds("decode", row)
        ours = row["decoder"] != "waterz"
        axes.barh(
            place,
            known.middle / 1e6,
            height=0.68,
            color=OURS if ours else REFERENCE,
            hatch=None if ours else "///",
            ec="white",
        )
        _range(axes, place, [value / 1e6 for value in known.values])
        times = "" if row["ratio"] is None else f", {row['ratio']:.3g} x"
        labels.append((known.most / 1e6, place, f"{seconds_of(row).middle:,.1f} s{times}"))
        first = next(other for other in result.rows if other["shape"] == row["shape"]) is row
        names.append(f"{size_text(row['shape'])}:  {row['name']}" if first else row["name"])
        if first and place < len(rows) - 1:
            axes.axhline(place + 0.5, color="#777777", linewidth=0.6)
    bar_labels(axes, labels)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, max(end for end, _, _ in labels) * 1.18)
    axes.set_xlabel(
        "megavoxels a second from disk to disk; x: times waterz on 8-bit values, of the same volume and fragments"
    )
    quiet(axes, "x")
    kinds = [
        Patch(facecolor=OURS, label="fgnet, block by block"),
        Patch(facecolor=REFERENCE, hatch="///", edgecolor="white", label="waterz, the reference"),
    ]
    figure.legend(handles=kinds, loc="outside lower center", ncols=2)
    return figure


def _range(axes: Axes, place: float, values: Sequence[float]) -> None:
    if len(values) > 1:
        axes.plot(values, [place] * len(values), "|", color=INK, markersize=8, markeredgewidth=1.2)
        axes.plot([min(values), max(values)], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
