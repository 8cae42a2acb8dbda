"""Every command explains itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import version

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from fgnet.cli.console import run_app

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


@pytest.mark.parametrize("name", COMMANDS)
def test_version_and_the_short_help_are_there(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app: typer.Typer = importlib.import_module(f"fgnet.cli.{name}").app
    monkeypatch.setattr("sys.argv", [f"bin/fgnet-{name}", "--version"])
    run_app(app)
    assert capsys.readouterr().out == f"fgnet-{name} {version('fgnet')}\n"
    monkeypatch.setattr("sys.argv", [f"bin/fgnet-{name}", "-h"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert ended.value.code == 0
    assert "Usage" in capsys.readouterr().out
