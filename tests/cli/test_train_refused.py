"""What fgnet-train refuses before it begins: the run that is there stays, and no option is taken and then ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgnet.cli.train import app

pytest.importorskip("torch", reason="training needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="training needs the extra fgnet[train]")

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FAST = ["--batch", 1, "--crop", "4,32,32", "--iterations", 2, "--modules", "without_sam2", "--depth", 3]
GRID = ["--experiment", "adaptation", "--encoder", "nano", "--batch", 1, "--crop", "4,32,32", "--iterations", 1]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, re.sub(r"[\s│]+", " ", result.stderr)


def data(path: Path) -> list[str]:
    return ["--raw", f"{path}:raw", "--labels", f"{path}:labels"]


def held_out(path: Path) -> list[str]:
    return ["--val-raw", f"{path}:raw", "--val-labels", f"{path}:labels", "--val-roi", "8:12,:,:"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tissue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out a quarter."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    code, stderr = run(folder, *data(tissue), *FAST, "--val-share", "0.25")
    assert code == 0, stderr
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "4,33,33"], "give y and x as multiples of"),
        (["--crop", "64,32,32"], "is smaller than the crop"),
        (["--batch", "3", "--accumulate", "2"], "batch"),
        (["--roi", "0:12,1:7,1:7"], "smaller than the crop"),
        (["--from", "ADAPTED", "--depth", "4"], "do not fit depth 4"),
    ],
)
def test_a_run_that_cannot_begin_replaces_nothing(
    tissue: Path, finished: Path, options: list[str], message: str
) -> None:
    before = contents(finished)
    given = [str(finished / "model.pt") if option == "ADAPTED" else option for option in options]
    code, stderr = run(finished, *data(tissue), *FAST[:-2], *given, "--overwrite")
    assert code != 0
    assert message in stderr
    assert contents(finished) == before


def test_a_grid_that_cannot_begin_replaces_nothing(tissue: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid"
    code, stderr = run(grid, *data(tissue), *held_out(tissue), *GRID)
    assert code == 0, stderr
    before = contents(grid)
    code, stderr = run(grid, *data(tissue), *held_out(tissue), *GRID, "--crop", "4,33,33", "--overwrite")
    assert (code, "give y and x as multiples of" in stderr) == (1, True)
    assert contents(grid) == before
    # Of the grid before, nothing stays beside the runs of a new one.
    code, stderr = run(grid, *data(tissue), *held_out(tissue), *GRID, "--learning-rate", "2e-3", "--overwrite")
    assert code == 0, stderr
    assert "finished before" not in stderr
    assert "learning rate: 0.002" in (grid / "table.md").read_text()
    assert "scored: true objects of at least 100 voxels" in (grid / "table.md").read_text()


@pytest.mark.parametrize("option", [("--patience", 3), ("--validate-every", 1), ("--val-decoder", "blockwise")])
def test_options_of_validations_need_one(tissue: Path, tmp_path: Path, option: tuple[Any, ...]) -> None:
    code, stderr = run(tmp_path / "run", *data(tissue), *FAST, *option)
    assert code == 2
    assert "there is nothing to validate on" in stderr
    assert option[0] in stderr
    assert not (tmp_path / "run").exists()


def test_one_validation_is_enough(tissue: Path, tmp_path: Path) -> None:
    for extra in (FAST, GRID):
        code, stderr = run(tmp_path / "run", *data(tissue), *held_out(tissue), *extra, "--val-share", "0.2")
        assert code == 1
        assert "what is validated on is named, and no share of a volume is held out (leave --val-share out)" in stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-share", "0.4"], "--val-share was 0.25"),
        (["--from", "nano"], "the run was started from random weights, not from nano (leave --from out)"),
    ],
)
def test_a_resumed_run_keeps_its_share_and_its_first_weights(
    tissue: Path, finished: Path, options: list[str], message: str
) -> None:
    code, stderr = run(finished, *data(tissue), *FAST, "--iterations", 3, *options, "--resume")
    assert code == 1
    assert message in stderr
    code, stderr = run(finished, *data(tissue), *FAST, "--val-share", "0.25", "--resume")
    assert code == 0, stderr
