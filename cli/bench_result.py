"""Where the result of a benchmark goes: to stdout as a table or as JSON, and into a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgnet.cli.console import print_json, print_renderable
from fgnet.volumes.errors import OutputError


def require_folder(output: Path | None) -> None:
    """Refuse a file that could not be written once everything is measured.

    Raises:
        OutputError: its folder does not exist.
    """
    if output is not None and not output.absolute().parent.is_dir():
        raise OutputError("the folder does not exist", where=output, remedy="make it, or name another one")


def publish(result: dict[str, Any], table: Callable[[], Any], *, output: Path | None, as_json: bool) -> None:
    """Write a result into its file, and print it.

    Args:
        result: as plain data.
        table: makes what rich prints of it.
        output: the file, if one is wanted.
        as_json: whether to print JSON in place of the table.
    """
    from fgnet.engine.atomic_file import write_atomically

    if output is not None:
        write_atomically(output, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    if as_json:
        print_json(result)
    else:
        print_renderable(table())
