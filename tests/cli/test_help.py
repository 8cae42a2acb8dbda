"""Every command explains itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import typer
import typer.main
from typer.testing import CliRunner

COMMANDS = ("bench", "eval", "export", "run", "sample", "train")


def _lines() -> Iterator[tuple[str, list[str]]]:
    for name in COMMANDS:
        app: typer.Typer = importlib.import_module(f"fgnet.cli.{name}").app
        command = typer.main.get_command(app)
        yield name, []
        yield from ((name, [inner]) for inner in getattr(command, "commands", {}))


@pytest.mark.parametrize(
    ("name", "line"), list(_lines()), ids=lambda value: " ".join([value] if isinstance(value, str) else value)
)
def test_help_is_shown(name: str, line: list[str]) -> None:
    app: typer.Typer = importlib.import_module(f"fgnet.cli.{name}").app
    result = CliRunner().invoke(app, [*line, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.exception
    assert "Usage" in result.stdout
    # What stands in brackets is not taken for markup.
    if name == "run":
        assert "v.zarr[/group/array]" in result.stdout
