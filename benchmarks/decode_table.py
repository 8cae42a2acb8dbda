"""A benchmark of decoders as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgnet.benchmarks.certainty import rank_notes, ratio_notes
from fgnet.benchmarks.decode_benchmark import DecodeBenchmark
from fgnet.benchmarks.engine_table import machine_line
from fgnet.benchmarks.result_file import Result

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_decode(benchmark: DecodeBenchmark) -> RenderableType:
    """The rows of each volume, with what they were measured on above and how to read them below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("volume", no_wrap=True)
    table.add_column("decoder", no_wrap=True)
    for heading in ("s", "Mvoxels/s", "x waterz", "peak memory", "segments"):
        table.add_column(heading, justify="right", no_wrap=True)
    above = None
    for row in benchmark.results:
        if above not in (None, row.shape):
            table.add_section()
        above = row.shape
        memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f} GiB"
        table.add_row(
            " x ".join(map(str, row.shape)),
            row.name,
            f"{row.seconds:.1f}",
            f"{row.voxels_per_second / 1e6:.2f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            memory,
            f"{row.segments:,}",
        )
    title = f"{benchmark.affinities}, threshold {benchmark.threshold:g}, mean affinity, from disk to disk"
    told = ["s: median of the repeats. x waterz: times as fast as waterz on uint8, of the same volume and fragments."]
    result = Result("decode", "decode", benchmark.to_dict())
    told += [*ratio_notes(result), *rank_notes(result)]
    notes = [Text(note) for note in told]
    return Group(Text(title, style="bold"), Text(machine_line(benchmark.machine), style="dim"), table, *notes)
