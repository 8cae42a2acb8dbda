"""What `fgnet-eval --objects` writes and `--worst` prints: what every object costs, and where to look."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgnet.cli.console import print_renderable

if TYPE_CHECKING:
    from fgnet.postproc.comparison import Comparison
    from fgnet.postproc.error_places import Place
    from fgnet.postproc.object_report import Pieces
    from fgnet.volumes.space import Space

Rows = list[dict[str, Any]]

# What stands in a row first, and what the others in it are.
_KINDS = {"splits": ("object", "segment"), "merges": ("segment", "object")}


def error_rows(compared: Comparison, worst: int) -> dict[str, Rows]:
    """The largest splits and merges as plain data, with the voxel to look at, in the whole ground truth."""
    from fgnet.postproc.object_report import largest_merges, largest_splits

    space = compared.truth.space
    splits, merges = largest_splits(compared.overlaps, worst), largest_merges(compared.overlaps, worst)
    return {
        "splits": [
            {"object": error.whole, "segments": list(error.parts), **_row(error, place, space)}
            for error, place in zip(splits, compared.split_places(splits), strict=True)
        ],
        "merges": [
            {"segment": error.whole, "objects": list(error.parts), **_row(error, place, space)}
            for error, place in zip(merges, compared.merge_places(merges), strict=True)
        ],
    }


def _row(error: Pieces, place: Place, space: Space) -> dict[str, Any]:
    return {
        "voxels": list(error.voxels),
        "parts": error.count,
        "voxel": list(place.voxel),
        "nm": [round(v, 3) for v in space.shifted(place.voxel).offset] if space.known else None,
        "faces": place.faces,
        "gap_nm": round(place.gap, 3) if space.known else None,
    }


def object_files(path: Path) -> list[Path]:
    """The files that `write_objects` writes."""
    return [path] if path.suffix == ".json" else [path, *(path.with_suffix(f".{kind}.csv") for kind in _KINDS)]


def write_objects(path: Path, compared: Comparison, errors: dict[str, Rows]) -> None:
    """Write what every object costs, and the errors: all in one .json, or each in a .csv of its own.

    Raises:
        OutputError: a file cannot be written.
    """
    from dataclasses import asdict

    from fgnet.postproc.object_report import object_scores

    rows = [asdict(row) for row in object_scores(compared.overlaps, compared.rules)]
    if path.suffix == ".json":
        write_text(path, json.dumps({"objects": rows, **errors}, indent=1) + "\n")
        return
    write_text(path, csv_text(list(rows[0]), [list(row.values()) for row in rows]))
    for kind, (whole, part) in _KINDS.items():
        titles = [whole, f"{part}_1", f"{part}_2", "voxels_1", "voxels_2", "parts"]
        titles += ["z", "y", "x", "z_nm", "y_nm", "x_nm", "faces", "gap_nm"]
        lines = [
            (row[whole], *row[f"{part}s"], *row["voxels"], row["parts"], *row["voxel"], *_nm(row), *_meeting(row))
            for row in errors[kind]
        ]
        write_text(path.with_suffix(f".{kind}.csv"), csv_text(titles, lines))


def _nm(row: dict[str, Any]) -> list[float | None]:
    return row["nm"] or [None, None, None]


def _meeting(row: dict[str, Any]) -> tuple[int, float | None]:
    return row["faces"], row["gap_nm"]


def csv_text(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values under a line of names; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole.

    Raises:
        OutputError: it cannot be written.
    """
    from fgnet.engine.atomic_file import write_atomically
    from fgnet.volumes.output_store import explained

    with explained(path):
        write_atomically(path, text.encode())


def error_tables(errors: dict[str, Rows]) -> None:
    """Print the largest splits and merges, where these were looked for, for people."""
    titles = {
        "splits": ("largest splits: objects cut into segments", "object", "segments"),
        "merges": ("largest merges: segments that join objects", "segment", "objects"),
    }
    for kind, rows in errors.items():
        print_renderable(_table(*titles[kind], rows))


def _table(title: str, whole: str, parts: str, rows: Rows) -> Any:
    from rich.table import Table

    if not rows:
        return f"\n{title}: none"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in (whole, f"{parts}: largest, second", "voxels", "of", "voxel (z, y, x)", "nm (z, y, x)", "there"):
        table.add_column(name, justify="right" if name in ("voxels", "of") else "left")
    for row in rows:
        nm = "" if row["nm"] is None else ", ".join(f"{value:g}" for value in row["nm"])
        touch = f"{row['faces']} faces touch" if row["faces"] else f"apart, {_gap(row)}"
        table.add_row(
            str(row[whole]),
            ", ".join(map(str, row[parts])),
            " + ".join(f"{count:,}" for count in row["voxels"]),
            f"{row['parts']:,}",
            ", ".join(map(str, row["voxel"])),
            nm,
            touch,
        )
    return table


def _gap(row: dict[str, Any]) -> str:
    return "voxel size unknown" if row["gap_nm"] is None else f"{row['gap_nm']:g} nm"
