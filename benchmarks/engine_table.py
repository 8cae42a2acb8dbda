"""A benchmark of engines as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgnet.benchmarks.certainty import rank_notes, ratio_notes
from fgnet.benchmarks.engine_results import EngineBenchmark, RowResult, unequal_notes
from fgnet.benchmarks.machine import Machine
from fgnet.benchmarks.result_file import Result

if TYPE_CHECKING:
    from rich.console import RenderableType


def render(benchmark: EngineBenchmark) -> RenderableType:
    """The rows, the fastest first, with what they were measured on above and what has to be said of them below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in (
        "voxels/s",
        "±",
        "x eager fp32",
        "x memory kept",
        "s/block",
        "of limit",
        "warm-up",
        "memory",
        "differs by",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in benchmark.results:
        table.add_row(Text(result.name), *_cells(result))
    patch, stride = (" x ".join(map(str, extents)) for extents in (benchmark.patch, benchmark.stride))
    blocks = f"blocks of {patch} every {stride} voxels, {benchmark.blocks} in a window"
    if benchmark.launches > 1:
        blocks += f", {benchmark.launches} processes of each row"
    title = f"{benchmark.model}: {blocks}, on {benchmark.gray}"
    notes = [Text(note) for note in _notes(benchmark)]
    return Group(Text(title, style="bold"), Text(machine_line(benchmark.machine), style="dim"), table, *notes)


def _cells(result: RowResult) -> list[str]:
    return [
        f"{result.voxels_per_second:,.0f}",
        f"{result.spread:.1%}{'' if result.settled else ' *'}",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if result.ratio_memory_kept is None else f"{result.ratio_memory_kept:.2f}",
        f"{result.seconds_per_block:.3g}",
        "" if result.share_of_limit is None else f"{result.share_of_limit:.0%}",
        f"{result.open_seconds + result.warm_up_seconds:.1f} s",
        _memory(result),
        "" if result.mean_difference is None else f"{result.mean_difference:.1e}",
    ]


def _memory(result: RowResult) -> str:
    """Of the GPU where it ran on one, else of its process."""
    held = result.peak_memory_bytes if result.device_memory_bytes is None else result.device_memory_bytes
    return "" if held is None else f"{held / 2**30:.2f} GiB"


def machine_line(machine: Machine) -> str:
    """A machine in one line."""
    gpu = "".join(f", {gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB)" for gpu in machine.gpus)
    load = "" if machine.load is None else f", load {machine.load:.1f} at the start"
    return f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB{gpu}; {machine.system}{load}"


def _notes(benchmark: EngineBenchmark) -> list[str]:
    notes = [
        "voxels/s: of output, the median of the windows; ±: half of their range. x: times as fast as eager PyTorch in "
        "fp32, as it comes and with the C library keeping its memory. differs by: mean difference of the affinities "
        "from it."
    ]
    result = Result("engine", "engine", benchmark.to_dict())
    notes += [*ratio_notes(result), *rank_notes(result)]
    notes += unequal_notes(result.rows)
    notes += _limit_notes(benchmark)
    if benchmark.no_reference is not None:
        notes.append(f"There is no eager PyTorch to compare with: {benchmark.no_reference}.")
    if benchmark.apart:
        notes.append("Each row was measured beside eager fp32 alone, not in turn with all others.")
    if benchmark.machine.busy:
        notes.append(
            "The machine was busy with something else at the start. That slows rows unequally, most of all PyTorch's "
            "threads, which wait for each other: do not quote these figures."
        )
    if any(not result.settled for result in benchmark.results):
        notes.append("* did not settle: its last three windows do not agree. More --repeats, or a quieter machine.")
    notes += [f"{row.name} failed: {row.reason}" for row in benchmark.failed]
    return notes


def _limit_notes(benchmark: EngineBenchmark) -> list[str]:
    """What the shares of the limit are shares of, and what energy was used."""
    notes, roofline = [], benchmark.roofline
    if roofline is not None and roofline.peaks is not None:
        peaks = [f"{name} {peak / 1e9:,.0f} GFLOP/s" for name, peak in roofline.peaks.flops_per_second.items()]
        peaks += [f"{name} not measured ({reason})" for name, reason in roofline.peaks.missing.items()]
        told = f"{', '.join(peaks)}; memory {roofline.peaks.bytes_per_second / 1e9:,.1f} GB/s"
        notes.append(f"of limit: of what the device's peaks allow. Measured: {told}.")
    if any((row.share_of_limit or 0) > 1 for row in benchmark.results):
        notes.append(
            "A share above 100% says that the peaks were measured while the machine was busy: all are too high."
        )
    if roofline is not None and roofline.reason is not None:
        notes.append(f"There is no share of the limit: {roofline.reason}.")
    if benchmark.energy["source"] is None:
        notes.append(f"There is no energy: {benchmark.energy['reason']}.")
    else:
        used = [(row.name, row.joules_per_gigavoxel) for row in benchmark.results]
        rows = [f"{name} {joules:,.0f}" for name, joules in used if joules is not None]
        notes.append(f"Joules per gigavoxel ({benchmark.energy['source']}): {', '.join(rows)}.")
    return notes
