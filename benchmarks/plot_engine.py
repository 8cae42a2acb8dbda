"""Plots of a benchmark of engines: speed of every row with its spread, and the roofline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fgnet.benchmarks.plot_style import (
    INK,
    OURS,
    PYTORCH,
    REFERENCE,
    SERIES,
    bar_labels,
    new_figure,
    quiet,
    si,
    spread_apart,
)
from fgnet.benchmarks.result_file import Result, speeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EAGER = "torch fp32 (eager"


def draw_speeds(result: Result) -> Figure:
    """A bar for each row, its windows as dots, the range of them as a line."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    rows = sorted(result.rows, key=lambda row: float(row["voxels_per_second"]))
    figure, (axes,) = new_figure(0.36 * len(rows) + 1.1)
    labels = []
    for place, row in enumerate(rows):
        known = speeds("engine", row)
        eager = is_eager(row)
        axes.barh(place, known.middle, height=0.68, color=colour_of(row), hatch="///" if eager else None, ec="white")
        _whisker(axes, place, known.values)
        times = "" if row.get("ratio") is None else f", {row['ratio']:.3g} x"
        labels.append((known.most, place, f"{si(known.middle)}{times}{'' if row['settled'] else ' *'}"))
    bar_labels(axes, labels)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, max(end for end, _, _ in labels) * 1.2)
    axes.set_xlabel("voxels of output a second; x: times eager PyTorch in fp32 as it comes, in the same rounds")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value) if value else "0"))
    quiet(axes, "x")
    kinds = [
        Patch(facecolor=OURS, label="fgnet, each section encoded once"),
        Patch(facecolor=PYTORCH, label="PyTorch's other ways"),
        Patch(facecolor=REFERENCE, hatch="///", edgecolor="white", label="references: PyTorch eager, fp32"),
    ]
    axes.legend(handles=kinds, loc="lower right")
    return figure


def draw_roofline(result: Result) -> Figure:
    """Operations a second against operations for each byte moved, under the roofs that were measured."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = [row for row in result.rows if row.get("limit_voxels_per_second") is not None]
    peaks = result.data["roofline"]["peaks"]
    points = [(row, row["flops_per_voxel"] / row["bytes_per_voxel"]) for row in rows]
    memory: float = peaks["bytes_per_second"]
    roofs: dict[str, float] = peaks["flops_per_second"]
    height = max(4.2, 0.22 * len(rows) + 1.2)
    figure, (axes,) = new_figure(height)
    reached = [row["flops_per_voxel"] * row["voxels_per_second"] for row in rows]
    ridges = [peak / memory for peak in roofs.values()]
    low, high = min([*(at for _, at in points), *ridges]) / 4, max([*(at for _, at in points), *ridges]) * 4
    for number, (precision, peak) in enumerate(sorted(roofs.items(), key=lambda roof: roof[1])):
        ridge = peak / memory
        colour = SERIES[(number + 1) % len(SERIES)]
        axes.plot([ridge, high], [peak, peak], color=colour, linewidth=1.6)
        axes.annotate(
            f"{precision}: {peak / 1e9:,.0f} GFLOP/s",
            (high, peak),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=colour,
            fontsize=9,
        )
    top = max(roofs.values())
    axes.plot([low, top / memory], [low * memory, top], color="#4d4d4d", linewidth=1.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min([*reached, low * memory]) / 1.6, top * 2)
    middle = low * (ridges[0] / low) ** 0.4
    axes.annotate(
        f"memory: {memory / 1e9:,.1f} GB/s",
        (middle, middle * memory),
        xytext=(8, -6),
        textcoords="offset points",
        fontsize=9,
        color="#4d4d4d",
        va="top",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1000 else si(value)))
        axis.set_minor_formatter(NullFormatter())
    _name_points(axes, points, reached, gap=0.2 / (height - 0.7))
    axes.set_xlabel("operations for each byte that products read and write")
    axes.set_ylabel("operations a second")
    quiet(axes, "both")
    return figure


def is_eager(row: dict[str, Any]) -> bool:
    """Whether a row is one that others are held to: eager FP32, with or without memory kept."""
    return str(row["name"]).startswith(_EAGER) and row.get("batch", 1) == 1


def colour_of(row: dict[str, Any]) -> str:
    """By who runs it: ours, PyTorch's ways, the references."""
    if is_eager(row):
        return REFERENCE
    return PYTORCH if str(row["backend"]).startswith("torch") else OURS


def _whisker(axes: Axes, place: float, values: tuple[float, ...]) -> None:
    """The range of what was measured, and every value of it."""
    if len(values) < 2:
        return
    axes.plot([min(values), max(values)], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
    axes.plot(values, [place] * len(values), "|", color=INK, markersize=7, markeredgewidth=1.1)


def _name_points(axes: Axes, points: list[tuple[dict[str, Any], float]], reached: list[float], gap: float) -> None:
    """A dot for each row, its name and its share of the limit in a column at the right, so far apart of the height."""
    import math

    low, high = (math.log(edge) for edge in axes.get_ylim())
    places = [(math.log(each) - low) / (high - low) for each in reached]
    for (row, at), speed, place in zip(points, reached, spread_apart(places, gap), strict=True):
        colour = colour_of(row)
        axes.plot([at], [speed], "o", color=colour, markersize=6, markeredgecolor="white", zorder=3)
        axes.annotate(
            f"{row['name']}, {row['share_of_limit']:.0%}",
            (at, speed),
            xytext=(1.02, place),
            textcoords="axes fraction",
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )
