"""Runs that keep their merge tree where another one lies, and are killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_journal import RunJournal
from fgnet.postproc.blockwise_graph import graph_plan
from fgnet.volumes.zarr_source import is_image


class KilledError(BaseException):
    """In the place of a kill."""


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> list[str]:
    store = tmp_path_factory.mktemp("gray") / "v.zarr"
    gray = np.random.default_rng(0).integers(0, 256, (8, 64, 90), dtype=np.uint8)
    zarr.create_array(str(store), shape=gray.shape, chunks=(8, 64, 64), dtype="u1")[:] = gray
    options = ["--backend", "onnxruntime", "--threads", "1", "--decoder", "blockwise"]
    return [str(store), "--model", str(tiny_bundle), *options]


def threshold_of(tree: Path) -> Any:
    return graph_plan(tree)["options"]["tree_threshold"]


def overwrite_and_be_killed(base: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> list[object]:
    """The arguments of a run that was to replace an older tree, and was killed at a function."""
    tree = folder / "tree.zarr"
    asked = [*base, "--save-graph", tree]
    run(*asked, "-o", folder / "old.zarr", "--threshold", "0.5")

    def kill(*_: object, **__: object) -> None:
        raise KilledError

    asked = [*asked, "-o", folder / "out.zarr", "--threshold", "0.6"]
    with monkeypatch.context() as killing:
        killing.setattr(f"fgnet.engine.{where}", kill)
        with pytest.raises(KilledError):
            run(*asked, "--overwrite")
    assert threshold_of(tree) == 0.5
    return asked


@pytest.mark.parametrize("where", ["pipeline.open_decoding", "blockwise_run.save_graph", "blockwise_run.put_in_place"])
def test_a_tree_that_was_to_be_replaced_is_replaced_after_a_kill(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    asked = overwrite_and_be_killed(base, tmp_path, monkeypatch, where)
    run(*asked, "--resume")
    assert is_image(tmp_path / "out.zarr")
    assert threshold_of(tmp_path / "tree.zarr") == 0.6
    assert {entry.name for entry in tmp_path.iterdir() if "tree" in entry.name} == {"tree.zarr"}


def test_a_tree_that_came_in_between_is_refused_before_anything_is_computed(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = overwrite_and_be_killed(base, tmp_path, monkeypatch, "pipeline.open_decoding")
    tree = tmp_path / "tree.zarr"
    run(*base, "-o", tmp_path / "third.zarr", "--threshold", "0.7", "--save-graph", tree, "--overwrite")
    told = run(*asked, "--resume", code=1)
    assert "merge tree of another decoding is there" in " ".join(told.split())
    assert threshold_of(tree) == 0.7
    with RunJournal(tmp_path / "out.zarr") as journal:
        assert not journal.done
    tree.rename(tmp_path / "moved.zarr")
    run(*asked, "--resume")
    assert threshold_of(tree) == 0.6
