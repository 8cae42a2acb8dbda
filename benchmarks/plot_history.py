"""A plot of recorded results, one after the other: how fast each version was."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgnet.benchmarks.plot_engine import is_eager
from fgnet.benchmarks.plot_style import PYTORCH, REFERENCE, SERIES, WIDTH, quiet, si, spread_apart
from fgnet.benchmarks.result_file import KINDS, Result, Samples, size_text, speeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS = tuple(colour for colour in SERIES if colour != PYTORCH)
_MARKERS = "os^Dv*Px"
_COLUMNS = 2
_PANEL_HEIGHT = 3.3


@dataclass(frozen=True)
class Panel:
    """Results that can be compared with each other.

    Attributes:
        title: what was measured, and on what.
        results: the oldest first.
        rows: by name, voxels per second in each result; None where it has no such row.
        references: names of rows that others are held to.
        others: names of PyTorch's other ways.
    """

    title: str
    results: tuple[Result, ...]
    rows: dict[str, list[Samples | None]]
    references: frozenset[str]
    others: frozenset[str]


def panels_of(results: Sequence[Result]) -> list[Panel]:
    """Results of engines, pipelines and decoders, those together that measured the same on the same kind of machine.

    Args:
        results: the oldest first.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.kind != "scale":
            groups.setdefault(_title(result), []).append(result)
    order = sorted(groups, key=lambda title: (KINDS.index(groups[title][0].kind), title))
    return [_panel(title, groups[title]) for title in order]


def draw_history(panels: Sequence[Panel]) -> Figure:
    """Voxels a second, in logarithms, of every row in every result; PyTorch's eager rows and waterz in gray."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = math.ceil(len(panels) / _COLUMNS)
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(WIDTH, _PANEL_HEIGHT * lines), layout=engine)
    grid = figure.subplots(lines, _COLUMNS, squeeze=False)
    looks = _looks(panels)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, looks)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    return figure


def commit_text(result: Result) -> str:
    """The version and the commit that a result is of; "+" where files differed from it."""
    commit = result.machine.get("commit")
    version = result.machine["packages"].get("fgnet", "?")
    return f"{version} {'?' if commit is None else commit[:7]}{'+' if commit and commit.endswith('+') else ''}"


def _looks(panels: Sequence[Panel]) -> dict[tuple[str, str], tuple[str, str]]:
    """Colour and marker of each row, by kind and name: the same in all panels."""
    looks: dict[tuple[str, str], tuple[str, str]] = {}
    for kind in KINDS:
        own = [panel for panel in panels if panel.results[0].kind == kind]
        held = {name for panel in own for name in panel.references}
        others = {name for panel in own for name in panel.others}
        names = sorted({name for panel in own for name in panel.rows})
        ours = [name for name in names if name not in held | others]
        for number, name in enumerate(names):
            colour = REFERENCE if name in held else PYTORCH
            if name in ours:
                colour = _OURS[ours.index(name) % len(_OURS)]
            looks[kind, name] = colour, _MARKERS[number % len(_MARKERS)]
    return looks


def _draw(axes: Axes, panel: Panel, looks: dict[tuple[str, str], tuple[str, str]]) -> None:
    ends: list[tuple[float, str, str]] = []
    for name, known in panel.rows.items():
        colour, marker = looks[panel.results[0].kind, name]
        points = [(place, samples) for place, samples in enumerate(known) if samples is not None]
        places = [place for place, _ in points]
        axes.plot(places, [each.middle for _, each in points], "-" + marker, color=colour, markersize=5, linewidth=1.2)
        for place, each in points:
            axes.plot([place, place], [each.least, each.most], color=colour, linewidth=2.5, alpha=0.45)
        ends.append((points[-1][1].middle, f"{name}: {si(points[-1][1].middle)}", colour))
    axes.set_yscale("log")
    # In one line it would reach beyond the picture.
    axes.set_title(panel.title.replace("; ", "\n"), fontsize=9.5)
    axes.set_xlim(-0.4, len(panel.results) - 0.6)
    axes.set_xticks(
        range(len(panel.results)),
        [commit_text(result) for result in panel.results],
        fontsize=8,
        rotation=90,
    )
    _plain_speeds(axes)
    quiet(axes, "both")
    bottom, top = (math.log(edge) for edge in axes.get_ylim())
    wanted = [(math.log(end) - bottom) / (top - bottom) for end, _, _ in ends]
    for (_, text, colour), height in zip(ends, spread_apart(wanted, 0.062), strict=True):
        axes.annotate(
            text, (1.02, height), xycoords="axes fraction", fontsize=8, va="center", color=colour, annotation_clip=False
        )


def _plain_speeds(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.15, high * 1.15)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", labelsize=8)


def _title(result: Result) -> str:
    machine, data = result.machine, result.data
    # Short enough to stand above a panel.
    processor = re.sub(r"\((R|TM)\)", "", machine["cpu"])
    place = machine["gpus"][0]["name"] if machine["gpus"] else f"{processor}, {machine['cores']} cores"
    if result.kind == "engine":
        return f"Engine, {data['model']}; {place}"
    if result.kind == "pipeline":
        return f"Pipeline, {data['model']}, {size_text(data['shape'])}; {place}"
    return f"Decoding, {size_text(_decoded(result))}; {place}"


def _panel(title: str, results: Sequence[Result]) -> Panel:
    rows: dict[str, list[Samples | None]] = {}
    references, others = set(), set()
    for number, result in enumerate(results):
        for row in result.rows:
            if result.kind == "decode" and row["shape"] != _decoded(result):
                continue
            name = str(row["name"])
            known = speeds(result.kind, row)
            rows.setdefault(name, [None] * len(results))[number] = known
            if _is_reference(result, row):
                references.add(name)
            elif str(row.get("backend")).startswith("torch"):
                others.add(name)
    return Panel(title, tuple(results), rows, frozenset(references), frozenset(others))


def _is_reference(result: Result, row: dict[str, Any]) -> bool:
    """Whether a row is what others are held to: eager PyTorch in fp32, waterz, the paper's way."""
    if result.kind == "engine":
        return is_eager(row)
    return row["decoder"] == "waterz" if result.kind == "decode" else row.get("kind") == "paper"


def _decoded(result: Result) -> list[int]:
    """The largest volume that waterz decoded, else the largest of all."""
    theirs = [row["shape"] for row in result.rows if row["decoder"] == "waterz"]
    shape: list[int] = max(theirs or [row["shape"] for row in result.rows], key=math.prod)
    return shape
