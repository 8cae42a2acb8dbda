"""fgnet-run --resume after a kill while an output, or a part of one, was being created."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_outputs import threshold_name
from fgnet.volumes.geometry import Triple
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.reading import open_volume

SHAPE = (12, 160, 200)
PARTIAL = f"zarr.{'0f' * 16}.partial"


@pytest.fixture(scope="module")
def base(noise_run: Callable[[Triple], list[str]]) -> list[str]:
    return noise_run(SHAPE)


@pytest.fixture(scope="module")
def whole(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an output that nobody killed, and its merge tree; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    run(*blockwise(base, folder / "out.zarr", "0.6,0.5"), "--save-graph", str(folder / "graph.zarr"))
    return folder


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def blockwise(base: list[str], output: Path, thresholds: str) -> list[str]:
    return [*base, "-o", str(output), "--decoder", "blockwise", "--threshold", thresholds]


def read(path: Path) -> npt.NDArray[np.generic]:
    with open_volume(path) as opened:
        return opened.read(opened.box)


def killed(command: list[str]) -> None:
    """A run that ends once its labels are written, before anything is declared complete."""

    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiscaleWriter, "build_pyramid", end)
        assert CliRunner().invoke(app, command).exit_code != 0


@pytest.mark.parametrize("left", ["nothing but a file in the making", "a group without its array"])
def test_a_further_segmentation_whose_creation_was_cut_short_is_created_anew(
    base: list[str], whole: Path, tmp_path: Path, left: str
) -> None:
    output = tmp_path / "out.zarr"
    killed(blockwise(base, output, "0.6"))
    group = output / "thresholds/0.5"
    group.mkdir(parents=True)
    if left.startswith("a group"):
        shutil.copy(whole / "out.zarr/thresholds/zarr.json", group / "zarr.json")
        shutil.copy(whole / "out.zarr/thresholds/zarr.json", group.parent / "zarr.json")
    else:
        (group / PARTIAL).touch()
    told = run(*blockwise(base, output, "0.6,0.5"), "--resume")
    assert "0 of" not in told
    np.testing.assert_array_equal(read(group), read(whole / "out.zarr/thresholds/0.5"))
    np.testing.assert_array_equal(read(output), read(whole / "out.zarr"))


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_an_output_whose_creation_was_cut_short_is_created_anew(
    base: list[str], whole: Path, tmp_path: Path, option: str
) -> None:
    output = tmp_path / "out.zarr"
    output.mkdir()
    (output / PARTIAL).touch()
    run(*blockwise(base, output, "0.6"), option)
    np.testing.assert_array_equal(read(output), read(whole / "out.zarr"))
    assert not (output / PARTIAL).exists()


def test_files_that_only_look_so_are_left_alone(base: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    output.mkdir()
    (output / PARTIAL).touch()
    (output / "notes.partial").write_text("mine")
    assert "is never overwritten" in run(*blockwise(base, output, "0.6"), "--overwrite", code=1)
    assert (output / "notes.partial").read_text() == "mine"


def test_labels_of_a_tree_begun_before_their_journal_are_begun_anew(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels.zarr"
    command = ["--from-graph", str(whole / "graph.zarr"), "-o", str(output), "--threshold", "0.5"]
    with pytest.MonkeyPatch.context() as patch:

        def end(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("fgnet.engine.run_journal.RunJournal.begin", end)
        assert CliRunner().invoke(app, command).exit_code != 0
    assert output.is_dir()
    run(*command, "--resume")
    np.testing.assert_array_equal(read(output), read(whole / "out.zarr/thresholds/0.5"))


def test_labels_of_a_tree_do_not_replace_an_unfinished_run_that_lost_its_journal(
    base: list[str], whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.zarr"
    killed(blockwise(base, output, "0.6"))
    Path(f"{output}.journal").unlink()
    command = ["--from-graph", str(whole / "graph.zarr"), "-o", str(output), "--threshold", "0.5", "--resume"]
    assert "the output exists already" in run(*command, code=1)
    assert any((output / "affinities/0").rglob("c*"))


def test_thresholds_that_differ_in_the_last_digits_are_kept_apart(base: list[str], tmp_path: Path) -> None:
    run(*blockwise(base, tmp_path / "out.zarr", "0.5,0.6000001,0.6000002,1"))
    found = {folder.name for folder in (tmp_path / "out.zarr/thresholds").iterdir() if folder.is_dir()}
    assert found == {"0.6000001", "0.6000002", "1"}
    assert [threshold_name(value) for value in (0.5, 1.0, 1e-7, np.float64(0.1))] == ["0.5", "1", "1e-07", "0.1"]
