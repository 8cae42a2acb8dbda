"""A benchmark of volume sizes as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgnet.benchmarks.engine_table import machine_line
from fgnet.benchmarks.scale_benchmark import ScaleBenchmark

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_scale(benchmark: ScaleBenchmark) -> RenderableType:
    """The sizes in turn, with what they were measured on above and how time grows below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    headings = (
        "volume",
        "x",
        "processes",
        "s",
        "x time",
        "Mvoxels/s",
        "affinities, s",
        "blocks",
        "block voxels/s",
        "peak memory",
        "network busy",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    first = benchmark.results[0]
    for row in benchmark.results:
        memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f} GiB"
        table.add_row(
            " x ".join(map(str, row.shape)),
            f"{row.factor}",
            f"{row.processes}",
            f"{row.seconds:.1f}",
            f"{row.seconds / first.seconds:.2f}",
            f"{row.voxels / row.seconds / 1e6:.3f}",
            f"{row.affinities_seconds:.1f}",
            f"{row.blocks:,}",
            f"{row.block_voxels_per_second:,}",
            memory,
            f"{row.resources['the network']:.0%}",
        )
    title = f"{benchmark.model} on {benchmark.backend} {benchmark.precision}: {' '.join(benchmark.command)}"
    told = "" if benchmark.exponent is None else f"time grows with the voxels to the power of {benchmark.exponent:.3f}"
    return Group(Text(title, style="bold"), Text(machine_line(benchmark.machine), style="dim"), table, Text(told))
