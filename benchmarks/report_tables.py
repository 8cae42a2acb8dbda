"""The figures of a benchmark as the rows of a table, for a report and for a README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgnet.benchmarks.certainty import rank_text, ranks, ratio_noise
from fgnet.benchmarks.plot_style import si
from fgnet.benchmarks.result_file import Result, seconds_of, size_text, speeds

_RATIOS = ("x eager", "x first", "x waterz, 8-bit values")


@dataclass(frozen=True)
class Table:
    """Cells in words.

    Attributes:
        headings: of the columns; the first holds names, the others numbers.
        rows: as many cells each.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table_of(result: Result) -> Table:
    """A result's rows; columns that nothing is known of are left out."""
    cells = {"engine": _engine, "pipeline": _pipeline, "decode": _decode, "scale": _scale}[result.kind]
    rows = [
        _with_certainty(cells(row), rank, ratio_noise(result, row))
        for row, rank in zip(result.rows, ranks(result), strict=True)
    ]
    headings = [heading for heading in rows[0] if any(row[heading] for row in rows)]
    if "limited by" in headings and len({row["limited by"] for row in rows} - {""}) == 1:
        # Said once, below.
        headings.remove("limited by")
    return Table(tuple(headings), tuple(tuple(row[heading] for heading in headings) for row in rows))


def _with_certainty(cells: dict[str, str], rank: tuple[int, int] | None, noise: float | None) -> dict[str, str]:
    """With the rank after the name, and how far another run may move the ratio after that."""
    placed: dict[str, str] = {}
    for number, (heading, cell) in enumerate(cells.items()):
        placed[heading] = cell
        if number == 0:
            placed["rank"] = rank_text(rank)
        if heading in _RATIOS:
            placed["±"] = _share(noise)
    return placed


def _engine(row: dict[str, Any]) -> dict[str, str]:
    known = speeds("engine", row)
    held = row["device_memory_bytes"] or row["peak_memory_bytes"]
    return {
        "row": row["name"],
        "voxels/s": f"{known.middle:,.0f}",
        "least to most": f"{si(known.least)} to {si(known.most)}" if len(known.values) > 1 else "",
        "windows": f"{row['windows']}{'' if row['settled'] else ' *'}",
        "x eager": _times(row.get("ratio")),
        "x kept": _times(row.get("ratio_memory_kept")),
        "of limit": _share(row.get("share_of_limit")),
        "limited by": row.get("limited_by") or "",
        "J/Gvoxel": "" if row.get("joules_per_gigavoxel") is None else f"{row['joules_per_gigavoxel']:,.0f}",
        "memory": _gib(held),
        "differs by": "" if row.get("mean_difference") is None else f"{row['mean_difference']:.1e}",
    }


def _pipeline(row: dict[str, Any]) -> dict[str, str]:
    return {
        "way": row["name"],
        **_timed(row),
        "x first": _times(row.get("ratio")),
        "memory": _gib(row.get("peak_memory_bytes")),
        "VOI to first": _bits(row.get("voi_to_reference")),
        "ARAND to first": _bits(row.get("arand_to_reference")),
        "VOI to truth": _bits(row.get("voi_to_truth")),
        "VOI moved": "" if row.get("delta_voi") is None else f"{row['delta_voi']:+.3f}",
    }


def _decode(row: dict[str, Any]) -> dict[str, str]:
    return {
        "decoder": row["name"],
        "volume": size_text(row["shape"]),
        **_timed(row),
        "x waterz, 8-bit values": _times(row.get("ratio")),
        "memory": _gib(row.get("peak_memory_bytes")),
        "segments": f"{row['segments']:,}",
    }


def _scale(row: dict[str, Any]) -> dict[str, str]:
    return {
        "volume": size_text(row["shape"]),
        "processes": str(row["processes"]) if row.get("processes", 1) > 1 else "",
        **_timed(row),
        # As its seconds, of the whole command; the file's voxels per second are of the affinities alone.
        "Mvoxels/s": f"{row['voxels'] / row['seconds'] / 1e6:.3f}",
        "affinities, s": f"{row['affinities_seconds']:,.2f}",
        "blocks": f"{row['blocks']:,}",
        "memory": _gib(row.get("peak_memory_bytes")),
        "network busy": _share(row["resources"].get("the network")),
    }


def _timed(row: dict[str, Any]) -> dict[str, str]:
    known = seconds_of(row)
    return {
        "s": f"{known.middle:,.2f}",
        "least to most": f"{known.least:,.2f} to {known.most:,.2f}" if len(known.values) > 1 else "",
        "repeats": f"{len(known.values)}",
        "Mvoxels/s": f"{row['voxels_per_second'] / 1e6:.3f}",
    }


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _gib(held: float | None) -> str:
    return "" if not held else f"{held / 2**30:.2f} GiB"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
