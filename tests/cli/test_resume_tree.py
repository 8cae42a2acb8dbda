"""Runs that keep their merge tree where another one lies, and are killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_journal import RunJournal
from fgnet.postproc.blockwise_graph import graph_attributes
from fgnet.volumes.reading import open_volume
from fgnet.volumes.zarr_source import is_image


class KilledError(BaseException):
    """In the place of a kill."""


def kill(*_: object, **__: object) -> None:
    raise KilledError


def fail(*_: object, **__: object) -> None:
    raise AssertionError("this was not to be called")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def be_killed(*arguments: object, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killing:
        killing.setattr(f"fgnet.engine.{where}", kill)
        with pytest.raises(KilledError):
            run(*arguments)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> list[str]:
    store = tmp_path_factory.mktemp("gray") / "v.zarr"
    gray = np.random.default_rng(0).integers(0, 256, (8, 64, 90), dtype=np.uint8)
    zarr.create_array(str(store), shape=gray.shape, chunks=(8, 64, 64), dtype="u1")[:] = gray
    options = ["--backend", "onnxruntime", "--threads", "1", "--decoder", "blockwise"]
    return [str(store), "--model", str(tiny_bundle), *options]


def threshold_of(tree: Path) -> Any:
    return graph_attributes(tree)["plan"]["options"]["tree_threshold"]


def overwrite_and_be_killed(base: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> list[object]:
    """The arguments of a run that was to replace an older tree, and was killed at a function."""
    tree = folder / "tree.zarr"
    asked = [*base, "--save-graph", tree]
    run(*asked, "-o", folder / "old.zarr", "--threshold", "0.5")

    asked = [*asked, "-o", folder / "out.zarr", "--threshold", "0.6"]
    be_killed(*asked, "--overwrite", where=where, monkeypatch=monkeypatch)
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


def labels_of(output: Path) -> npt.NDArray[Any]:
    with open_volume(output) as opened:
        return opened.read(opened.box)


@pytest.mark.parametrize("killed_at", [None, "blockwise_run.save_graph", "pipeline.write_record"])
def test_a_tree_of_an_input_that_has_changed_between_its_probes_is_replaced(
    tmp_path: Path, tiny_bundle: Path, base: list[str], monkeypatch: pytest.MonkeyPatch, killed_at: str | None
) -> None:
    monkeypatch.setattr("fgnet.engine.run_identity.fingerprint", lambda _: "no probe sees the change")
    source = tmp_path / "v.zarr"
    asked = [source, *base[1:], "--threshold", "0.6", "-o", tmp_path / "out.zarr", "--save-graph", tmp_path / "t.zarr"]
    for seed in (0, 1):
        gray = np.random.default_rng(seed).integers(0, 256, (8, 64, 90), dtype=np.uint8)
        zarr.create_array(str(source), data=gray, overwrite=True)
        if seed == 0:
            run(*asked)
    before = labels_of(tmp_path / "out.zarr")
    if killed_at is None:
        run(*asked, "--overwrite")
    else:
        be_killed(*asked, "--overwrite", where=killed_at, monkeypatch=monkeypatch)
        run(*asked, "--resume")
    after = labels_of(tmp_path / "out.zarr")
    assert not np.array_equal(before, after)
    run("--from-graph", tmp_path / "t.zarr", "-o", tmp_path / "again.zarr", "--threshold", "0.6")
    np.testing.assert_array_equal(labels_of(tmp_path / "again.zarr"), after)


def test_a_tree_that_the_killed_run_has_kept_itself_is_kept_or_replaced_by_one_that_reaches_higher(
    tmp_path: Path, base: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree.zarr"
    asked = [*base, "-o", tmp_path / "out.zarr", "--save-graph", tree]
    last: dict[str, Any] = {"where": "pipeline.write_record", "monkeypatch": monkeypatch}
    be_killed(*asked, "--threshold", "0.5", **last)
    with monkeypatch.context() as refusing:
        # It is not written a second time.
        refusing.setattr("fgnet.engine.blockwise_run.save_graph", fail)
        be_killed(*asked, "--threshold", "0.5", "--resume", **last)
    run(*asked, "--threshold", "0.6", "--resume")
    assert threshold_of(tree) == 0.6
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.zarr", "out.zarr.run.json", "tree.zarr"]


def test_the_tree_of_an_output_that_is_complete_without_it_is_refused(tmp_path: Path, base: list[str]) -> None:
    asked = [*base, "-o", tmp_path / "out.zarr", "--threshold", "0.5", "--resume"]
    trees = [tmp_path / "its.zarr", tmp_path / "none.zarr", tmp_path / "other.zarr"]
    run(*asked, "--save-graph", trees[0])
    run(*base, "-o", tmp_path / "else.zarr", "--threshold", "0.5", "--blending", "constant", "--save-graph", trees[2])
    run(*asked, "--save-graph", trees[0])
    for options in ([trees[1]], [trees[2]], [trees[0], "--graph-threshold", "0.6"]):
        told = run(*asked, "--save-graph", *options, code=1)
        assert "only the run that makes it keeps its merge tree" in " ".join(told.split())
    assert is_image(tmp_path / "out.zarr")
    assert not trees[1].exists()
