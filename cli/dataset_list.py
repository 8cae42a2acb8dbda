"""Which data sets does fgnet-train know by name, and which of their files are missing?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fgnet.cli.console import print_json, print_renderable


def list_datasets(folder: Path | None, *, as_json: bool) -> None:
    """Prints the data sets, their files and splits; with a folder, which of the files are not in it."""
    from fgnet.network.datasets import DATASETS, Dataset, locate
    from fgnet.volumes.errors import AddressError

    def missing(dataset: Dataset) -> list[str]:
        absent = []
        for file in dataset.files:
            try:
                locate(dataset, file, folder or Path())
            except AddressError:
                absent.append(" or ".join(file.names))
        return list(dict.fromkeys(absent))

    if as_json:
        rows = [d.to_dict() | ({} if folder is None else {"missing": missing(d)}) for d in DATASETS.values()]
        print_json({"datasets": rows})
        return
    print_renderable(_dataset_table(list(DATASETS.values()), None if folder is None else missing))


def _dataset_table(datasets: Sequence[Any], missing: Callable[[Any], list[str]] | None) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("name", "files in --data-dir", "nm (z, y, x)", "sections", "what, source, citation, licence"):
        table.add_column(column, overflow="fold")
    if missing is not None:
        table.add_column("missing", overflow="fold")
    for dataset in datasets:
        files = list(dict.fromkeys(" or ".join(file.names) for file in dataset.files))
        parts = [f"{name} {part.roi.partition(',')[0]}" for name, part in dataset.parts.items()]
        table.add_row(
            dataset.name,
            "\n".join(files),
            ", ".join(f"{length:g}" for length in dataset.voxel_size),
            "\n".join(parts),
            "\n".join((dataset.title, dataset.source, dataset.citation, dataset.licence)),
            *([] if missing is None else ["\n".join(missing(dataset)) or "-"]),
        )
    return table
