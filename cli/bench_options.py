"""Options that several subcommands of fgnet-bench share, and how their lists are read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File for the JSON object, beside what is printed.")
]
Report = Annotated[Path | None, typer.Option(help="Folder for a page with plots of it, and for the JSON object.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Folder = Annotated[
    Path | None, typer.Option(help="For the volumes, which are deleted.", show_default="a temporary one")
]

Repeats = Annotated[int, typer.Option(min=1, help="Of every row; all rows in turn.")]


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    """The folder of --folder, or a temporary one that is removed."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def listed(text: str | None) -> list[str]:
    """Parts of a list by commas, without blanks; none for none."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers of a list by commas.

    Raises:
        typer.BadParameter: one is no whole number from 1 on, or there is none.
    """
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in listed(text)]
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{text!r} are not whole numbers from 1 on", param_hint=option)
    return numbers
