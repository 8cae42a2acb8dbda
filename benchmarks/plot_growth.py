"""Plots of how time and memory grow with a volume, in log-log with the exponents that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgnet.benchmarks.plot_style import FAINT, SERIES, new_figure, quiet, si
from fgnet.benchmarks.result_file import Result, Samples, seconds_of
from fgnet.benchmarks.scale_benchmark import fitted_exponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """One way of doing it, on volumes of several sizes.

    Attributes:
        name: of the way.
        voxels: of each volume.
        seconds: for each.
        memory: bytes at most, for each; None where nothing told.
    """

    name: str
    voxels: tuple[float, ...]
    seconds: tuple[Samples, ...]
    memory: tuple[float | None, ...]

    @property
    def exponent(self) -> float | None:
        """B of seconds = a * voxels^b, fitted to the medians; None for a single size."""
        return fitted_exponent(self.voxels, [samples.middle for samples in self.seconds])


def curves_of(result: Result) -> list[Curve]:
    """The curves of a benchmark of sizes or of decoders, each by its name."""
    named: dict[str, list[tuple[float, Samples, float | None]]] = {}
    for row in result.rows:
        if result.kind == "decode":
            name = str(row["name"])
        else:
            workers = int(row.get("processes", 1))
            name = "fgnet-run" if workers == 1 else f"fgnet-run, {workers} processes"
        entry = (float(math.prod(row["shape"])), seconds_of(row), row.get("peak_memory_bytes"))
        named.setdefault(name, []).append(entry)
    curves = []
    for name, entries in named.items():
        voxels, seconds, memory = zip(*sorted(entries, key=lambda entry: entry[0]), strict=True)
        curves.append(Curve(name, voxels, seconds, memory))
    return curves


def draw_growth(curves: Sequence[Curve]) -> Figure:
    """Time at the left, memory at the right, against voxels."""
    figure, (time, memory) = new_figure(3.6 + 0.2 * math.ceil((len(curves) + 1) / _columns(curves)), columns=2)
    sizes = [size for curve in curves for size in curve.voxels]
    for number, curve in enumerate(curves):
        colour, style = SERIES[number % len(SERIES)], "os^Dv*Px"[number % 8]
        middles = [samples.middle for samples in curve.seconds]
        b = curve.exponent
        name = curve.name if b is None else f"{curve.name}: voxels^{b:.2f}"
        time.plot(curve.voxels, middles, "-" + style, color=colour, label=name, markersize=5, linewidth=1.4)
        for size, samples in zip(curve.voxels, curve.seconds, strict=True):
            time.plot([size, size], [samples.least, samples.most], color=colour, linewidth=2.5, alpha=0.5)
        held = [(size, each / 2**30) for size, each in zip(curve.voxels, curve.memory, strict=True) if each]
        memory.plot(*zip(*held, strict=True), "-" + style, color=colour, markersize=5, linewidth=1.4) if held else None
    slowest = max(curves, key=lambda curve: curve.seconds[0].middle)
    _proportional(time, slowest.voxels[0], slowest.seconds[0].middle, max(sizes))
    for axes, title in ((time, "seconds"), (memory, "peak memory, GiB")):
        axes.set_title(title)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("voxels of the volume")
        _plain_ticks(axes, sorted(set(sizes)))
        quiet(axes, "both")
    figure.legend(loc="outside lower left", ncols=_columns(curves))
    return figure


def _columns(curves: Sequence[Curve]) -> int:
    """Of the legend, so that long names fit."""
    return 3 if max(len(curve.name) for curve in curves) < 26 else 2


def _proportional(axes: Axes, voxels: float, seconds: float, last: float) -> None:
    """What time would be if it grew as the volume does."""
    if last > voxels:
        axes.plot(
            [voxels, last],
            [seconds, seconds * last / voxels],
            "--",
            color="#999999",
            linewidth=1,
            label="in proportion to the volume",
            zorder=0,
        )


def _plain_ticks(axes: Axes, sizes: Sequence[float]) -> None:
    """Sizes that were measured along x, plain numbers along y."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xticks(sizes, [si(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if high / low < 4:
        axes.set_ylim(low / 2, high * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    axes.spines["left"].set_color(FAINT)
