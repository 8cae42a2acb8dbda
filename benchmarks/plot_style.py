"""How plots look, and how they become SVG that stands in a page: text as text, nothing that is fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people who see red and green alike, and in gray: after Okabe and Ito, 2008, https://jfly.uni-koeln.de/color/
OURS = "#0072b2"
PYTORCH = "#e69f00"
REFERENCE = "#8c8c8c"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#4d4d4d")
INK = "#222222"
FAINT = "#d9d9d9"

WIDTH = 9.6
"""Inches of every plot; a page shows them as wide as its text."""

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.6,
}


@contextmanager
def plotting() -> Iterator[None]:
    """Around all that draws: our look, whatever a user's own settings are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def new_figure(height: float, columns: int = 1, widths: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with axes side by side.

    Args:
        height: in inches.
        columns: axes.
        widths: of the axes, in parts; equal by default.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=widths)
    return figure, list(axes[0])


def to_svg(figure: Figure, name: str, told: str) -> str:
    """A figure as an SVG element.

    The same figure gives the same text. Names within it begin with its own, so that several stand in one page.

    Args:
        figure: to draw, within `plotting`.
        name: of letters and hyphens.
        told: what it shows, for those who do not see it.
    """
    import matplotlib as mpl

    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(told, quote=True)}" ', 1).strip()


def bar_labels(axes: Axes, texts: Sequence[tuple[float, float, str]]) -> None:
    """Words right of horizontal bars: (where they end, their place, what to say)."""
    for end, place, text in texts:
        axes.annotate(text, (end, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)


def quiet(axes: Axes, grid: str) -> None:
    """A grid behind what is drawn, along one axis or "both"."""
    kinds: Any = grid
    axes.grid(axis=kinds, which="major", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def spread_apart(places: Sequence[float], gap: float) -> list[float]:
    """Places, in their order from low to high, moved as little as keeps them `gap` apart."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[float]] = []  # [middle, how many]
    for index in order:
        groups.append([places[index], 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (above, many), (below, few) = groups.pop(), groups.pop()
            groups.append([(above * many + below * few) / (many + few), many + few])
    moved = [middle + gap * (number - (count - 1) / 2) for middle, count in groups for number in range(int(count))]
    result = [0.0] * len(places)
    for index, place in zip(order, moved, strict=True):
        result[index] = place
    return result


def si(value: float) -> str:
    """A number with three digits and k, M, G or T, such as "192 k"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
