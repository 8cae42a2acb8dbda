"""A benchmark of ways from volume to segmentation as tables for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fgnet.benchmarks.certainty import rank_notes, ratio_notes
from fgnet.benchmarks.engine_table import machine_line
from fgnet.benchmarks.pipeline_results import PipelineBenchmark, PipelineRow
from fgnet.benchmarks.pipeline_run import START
from fgnet.benchmarks.result_file import Result

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_STAGES = (START, "read", "inference", "blending", "affinities", "decode", "pyramid", "write")


def render_pipeline(benchmark: PipelineBenchmark) -> RenderableType:
    """Speed, scores and stages of the rows, with what they were measured on above and notes below."""
    from rich.console import Group
    from rich.text import Text

    shape = " x ".join(map(str, benchmark.shape))
    title = f"{benchmark.model}: {shape} voxels of {benchmark.volume}, from disk to disk"
    return Group(
        Text(title, style="bold"),
        Text(machine_line(benchmark.machine), style="dim"),
        _table(benchmark.results, _speeds, ""),
        _table(benchmark.results, _scores, "segmentation"),
        _table(benchmark.results, _stages, "seconds of"),
        *(Text(note) for note in _notes(benchmark)),
    )


def _speeds(row: PipelineRow) -> dict[str, str]:
    """Cells by heading."""
    return {
        "s": f"{row.seconds:.1f}",
        "Mvoxels/s": f"{row.voxels_per_second / 1e6:.3f}",
        "x paper": _number(row.ratio, ".2f"),
        "x kept": _number(row.ratio_memory_kept, ".2f"),
        "peak memory": "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f} GiB",
        "decoder": row.decoder,
        "segments": f"{row.segments:,}",
    }


def _scores(row: PipelineRow) -> dict[str, str]:
    """Cells by heading."""
    return {
        "VOI to paper": _number(row.voi_to_reference, ".4f"),
        "ARAND to paper": _number(row.arand_to_reference, ".4f"),
        "VOI to truth": _number(row.voi_to_truth, ".4f"),
        "split": _number(row.voi_split_to_truth, ".4f"),
        "merge": _number(row.voi_merge_to_truth, ".4f"),
        "ARAND to truth": _number(row.arand_to_truth, ".4f"),
        "delta VOI": _number(row.delta_voi, "+.4f"),
    }


def _stages(row: PipelineRow) -> dict[str, str]:
    """Seconds by stage."""
    named = (*_STAGES, *sorted(row.stages.keys() - set(_STAGES)))
    return {stage: _number(row.stages.get(stage), ".1f") for stage in named}


def _table(rows: Sequence[PipelineRow], cells: Callable[[PipelineRow], dict[str, str]], title: str) -> Table:
    """A line for each row; columns that no row fills are left out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    told = [cells(row) for row in rows]
    headings = dict.fromkeys(heading for line in told for heading in line)
    filled = [heading for heading in headings if any(line.get(heading) for line in told)]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(title)
    for heading in filled:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, line in zip(rows, told, strict=True):
        table.add_row(Text(row.name), *(line.get(heading, "") for heading in filled))
    return table


def _notes(benchmark: PipelineBenchmark) -> list[str]:
    notes = [
        "s: of the process, median of the repeats. x: times as fast as the paper's way as it comes, and with the"
        " C library keeping memory. delta VOI: to the truth, less the paper's way's; above 0 is worse.",
        f"{START}: what is no other stage: imports, opening the network. affinities of fgnet-run: reading, network,"
        " blending and writing, which overlap; its write: coarser levels.",
    ]
    result = Result("pipeline", "pipeline", benchmark.to_dict())
    notes += [*ratio_notes(result), *rank_notes(result)]
    notes += [_busy(row) for row in benchmark.results if row.busy]
    if benchmark.machine.busy:
        notes.append("The machine was busy with something else at the start: do not quote these figures.")
    notes += [f"{one.name} was left out: {one.reason.rstrip('.')}." for one in benchmark.left_out]
    return [*notes, f"again: {shlex.join(benchmark.command)}"] if benchmark.command else notes


def _busy(row: PipelineRow) -> str:
    worked = ", ".join(f"{part} {seconds:.1f}" for part, seconds in row.busy.items() if seconds >= 0.05)
    return f"{row.name}: {row.backend} {row.precision}; seconds worked in affinities: {worked}."


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
