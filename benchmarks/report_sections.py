"""What a report says of each benchmark: sentences, plots with how to read them, a table, the machine, the command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fgnet.benchmarks.certainty import ranks, ratio_notes
from fgnet.benchmarks.engine_results import unequal_notes
from fgnet.benchmarks.plot_engine import draw_roofline, draw_speeds
from fgnet.benchmarks.plot_growth import curves_of, draw_growth
from fgnet.benchmarks.plot_rows import draw_decoders, draw_stages
from fgnet.benchmarks.plot_style import si, to_svg
from fgnet.benchmarks.report_tables import Table, table_of
from fgnet.benchmarks.result_file import Kind, Result, Samples, seconds_of, size_text, speeds


@dataclass(frozen=True)
class Plot:
    """A plot and how to read it.

    Attributes:
        svg: the element.
        caption: below it.
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A benchmark in the report.

    Attributes:
        anchor: within the page.
        title: what was measured.
        file: that holds the figures.
        said: what was found, in sentences.
        plots: in their order.
        table: the figures.
        notes: what has to be known of them.
        machine: name and value of what decides speed.
        versions: of packages.
        command: to repeat it; None where an older file does not tell.
    """

    anchor: str
    title: str
    file: str
    said: tuple[str, ...]
    plots: tuple[Plot, ...]
    table: Table
    notes: tuple[str, ...]
    machine: tuple[tuple[str, str], ...]
    versions: str
    command: str | None


def section_of(result: Result, number: int) -> Section:
    """A result's section; within `plot_style.plotting`.

    Args:
        result: what was recorded.
        number: of the section in its page.
    """
    anchor = f"{result.kind}-{number}"
    tell: dict[Kind, Callable[[Result], list[str]]] = {
        "engine": _engine,
        "pipeline": _pipeline,
        "decode": _decode,
        "scale": _scale,
    }
    return Section(
        anchor,
        _title(result),
        result.name,
        tuple(tell[result.kind](result)),
        tuple(_plots(result, anchor)),
        table_of(result),
        tuple(_notes(result)),
        tuple(_machine(result.machine)),
        ", ".join(f"{name} {version}" for name, version in result.machine["packages"].items()),
        _command(result),
    )


def in_words(samples: Samples, of: str, unit: str) -> str:
    """A median and where all values lie, such as "1.2 s (the median of 3 repeats, 1.1 to 1.3 s)"."""
    if len(samples.values) == 1:
        return f"{si(samples.middle)}{unit} (measured once)"
    return (
        f"{si(samples.middle)}{unit} (the median of {len(samples.values)} {of}, "
        f"{si(samples.least)} to {si(samples.most)}{unit})"
    )


def _title(result: Result) -> str:
    data = result.data
    if result.kind == "engine":
        return f"Engines: {data['model']}, output voxels a second"
    if result.kind == "pipeline":
        return f"Pipeline: from a volume on disk to its segmentation, {size_text(data['shape'])} voxels"
    if result.kind == "decode":
        return f"Decoding: {data['affinities']}"
    return f"Growth: fgnet-run with {data['model']} on volumes of growing size"


def _in_processes(data: dict[str, Any]) -> str:
    # Files of before say nothing about it.
    many = data.get("launches", 1)
    return f"; each row ran in {many} processes, one after the other" if many > 1 else ""


def _engine(result: Result) -> list[str]:
    data, rows = result.data, result.rows
    best = max(rows, key=lambda row: float(row["voxels_per_second"]))
    known = speeds("engine", best)
    count = best["windows"]
    told = f"the median of {count} windows, {si(known.least)} to {si(known.most)}" if count > 1 else "measured once"
    said = [
        f"Blocks of {size_text(data['patch'])} voxels every {size_text(data['stride'])} of {data['gray']}, "
        f"{data['blocks']} in a window{_in_processes(data)}.",
        f"The fastest row, {best['name']}, gives {si(known.middle)} voxels a second ({told}).",
    ]
    if best.get("ratio") is not None:
        kept = best.get("ratio_memory_kept")
        less = "" if kept is None else f", and {kept:.3g} times the same with its memory kept by the C library"
        said.append(f"That is {best['ratio']:.3g} times eager PyTorch in fp32 as it comes{less}.")
    elif data.get("no_reference"):
        said.append(f"There is no eager PyTorch to compare with: {data['no_reference']}.")
    return said


def _pipeline(result: Result) -> list[str]:
    data, rows = result.data, result.rows
    said = [f"{data['volume']}, the model {data['model']}; every way in processes of its own, all ways in turn."]
    for number, row in enumerate(rows):
        told = in_words(seconds_of(row), "repeats", " s")
        longest = max(row["stages"], key=lambda stage: float(row["stages"][stage]))
        share = float(row["stages"][longest]) / float(row["seconds"])
        compared = ""
        if number and row.get("ratio") is not None:
            compared = f", {row['ratio']:.3g} times as fast as the first way"
        if number and row.get("delta_voi") is not None:
            compared += f", VOI against the truth {row['delta_voi']:+.3f} beside the first way's"
        said.append(f"{row['name']}: {told}{compared}; {share:.0%} of it is {longest}.")
    return said


def _decode(result: Result) -> list[str]:
    said = [f"Threshold {result.data['threshold']:g}, scores by mean affinity, from disk to disk."]
    for fragments, ratio in result.data["ratio"].items():
        theirs = [row for row in result.rows if (row["decoder"], row["values"]) == ("waterz", "uint8")]
        shape = max((row["shape"] for row in theirs if row["fragments"] == fragments), key=_voxels)
        made = "the 3-D watershed" if fragments == "affinity" else "sections"
        said.append(
            f"Fragments of {made}: the fastest blockwise row is {ratio:.3g} times as fast as waterz on 8-bit values, "
            f"on {size_text(shape)} voxels."
        )
    for curve in curves_of(result):
        if curve.exponent is not None:
            first, last = curve.voxels[0], curve.voxels[-1]
            grown = curve.seconds[-1].middle / curve.seconds[0].middle
            said.append(
                f"{curve.name}: {last / first:.3g} times the voxels take {grown:.3g} times as long "
                f"(voxels to the power of {curve.exponent:.2f})."
            )
    return said


def _scale(result: Result) -> list[str]:
    data = result.data
    said = [f"{data['backend']} {data['precision']}: {shlex.join(data['command'])}"]
    said += [
        f"{curve.name}: time grows with the voxels to the power of {curve.exponent:.2f}; 1 is in proportion."
        for curve in curves_of(result)
        if curve.exponent is not None
    ]
    last = result.rows[-1]
    told = in_words(seconds_of(last), "repeats", " s")
    return [*said, f"{size_text(last['shape'])} voxels: {told}; {last['bottleneck']}."]


def _plots(result: Result, anchor: str) -> list[Plot]:
    if result.kind == "engine":
        drawn = [
            Plot(
                to_svg(draw_speeds(result), f"{anchor}-speed", "Voxels a second of every row, as bars"),
                "A bar ends at the median of a row's windows; the line across its end is their range, each stroke a "
                "window. The number is the median, then how many times eager PyTorch it is. Hatched rows are the "
                "references. * did not settle: its last three windows differ by more than a twentieth.",
            )
        ]
        if any(row.get("limit_voxels_per_second") is not None for row in result.rows):
            drawn.append(
                Plot(
                    to_svg(draw_roofline(result), f"{anchor}-roofline", "Operations a second under measured roofs"),
                    "Lines are what the device did at most, before the rows or after them: matrix products at each "
                    "precision, and copies. A row can come up to its precision's line; the share that it reached of "
                    "what operations and memory allow stands after its name. Counted from the graphs, in the form in "
                    "which the row needs them: PyTorch's rows encode all sections of every block.",
                )
            )
        return drawn
    if result.kind == "pipeline":
        return [
            Plot(
                to_svg(draw_stages(result), f"{anchor}-stages", "Seconds of each way, by stage"),
                "A bar is one way, its colours the stages of the repeat in the middle, its end the median of the "
                "repeats; the strokes are every repeat. White is what the stages leave of the median.",
            )
        ]
    curves = [curve for curve in curves_of(result) if len(curve.voxels) > 1]
    drawn = []
    if result.kind == "decode":
        drawn.append(
            Plot(
                to_svg(draw_decoders(result), f"{anchor}-speed", "Megavoxels a second of every decoder, as bars"),
                "Longer is faster. A bar ends at the median of a row's repeats, strokes are every repeat; after it "
                "stand the seconds and how many times as fast it is as waterz on uint8 of this volume and fragments.",
            )
        )
    if curves:
        drawn.append(
            Plot(
                to_svg(draw_growth(curves), f"{anchor}-growth", "Time and memory against voxels, in logarithms"),
                "Both axes are logarithmic: a straight line is a power of the voxels, whose exponent stands in the "
                "legend; parallel to the dashed line is in proportion to the volume.",
            )
        )
    return drawn


def _notes(result: Result) -> list[str]:
    machine, notes = result.machine, []
    load = machine.get("load")
    if load is not None and load > machine["cores"] / 4:
        notes.append(
            f"The machine was busy with something else at the start (load {load:g} on {machine['cores']} cores), which "
            "slows rows unequally."
        )
    if result.kind == "engine":
        if result.data["apart"]:
            notes.append("Each row was measured beside eager fp32 alone, not in turn with all others.")
        energy = result.data.get("energy")
        if energy is not None and energy["source"] is None:
            notes.append(f"No energy: {energy['reason']}.")
        roofline = result.data.get("roofline")
        if roofline is not None:
            limits = {row["limited_by"] for row in result.rows if row.get("limited_by")}
            if len(limits) == 1:
                notes.append(f"What limits every row is {'the memory' if 'memory' in limits else 'operations'}.")
            if any((row.get("share_of_limit") or 0) > 1 for row in result.rows):
                notes.append("A share above 100% says that the peaks were measured while the machine was busy.")
            notes.append(f"Counted: {roofline['counted']}.")
            notes += [] if roofline["reason"] is None else [f"No share of the limit: {roofline['reason']}."]
            missing = {} if roofline["peaks"] is None else roofline["peaks"]["missing"]
            notes += [f"No peak of {name}: {reason}." for name, reason in missing.items()]
    notes += unequal_notes(result.rows)
    notes += ratio_notes(result)
    if any(rank is not None and rank[0] < rank[1] for rank in ranks(result)):
        notes.append("Rows whose ranks overlap are too close to say which is faster.")
    notes += [f"{row['name']} failed: {row['reason']}" for row in result.data.get("failed", ())]
    notes += [f"{row['name']} was left out: {row['reason']}" for row in result.data.get("left_out", ())]
    return notes


def _machine(machine: dict[str, Any]) -> list[tuple[str, str]]:
    told = [
        (
            "CPU",
            f"{machine['cpu']}, {machine['cores']} cores"
            + (f", {machine['quota']:g} of them by quota" if machine.get("quota") else ""),
        ),
        ("instruction sets", " ".join(machine["simd"])),
        ("memory", f"{machine['memory_bytes'] / 2**30:.0f} GiB"),
    ]
    told += [
        ("GPU", f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, driver {gpu['driver']}")
        for gpu in machine["gpus"]
    ]
    commit = machine.get("commit")
    differs = ", with files that differ from it" if commit and commit.endswith("+") else ""
    told += [
        ("system", machine["system"]),
        ("Python", machine["python"]),
        ("commit", f"{commit.rstrip('+')}{differs}" if commit else "not known"),
    ]
    return told


def _command(result: Result) -> str | None:
    for key in ("invocation", "command"):
        told = result.data.get(key)
        if told and told[0] != "fgnet-run":
            return shlex.join(told)
    return None


def _voxels(shape: Sequence[int]) -> int:
    z, y, x = shape
    return z * y * x
