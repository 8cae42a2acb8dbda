"""fgnet-run --resume with other thresholds, or another decoder, than the run had that was killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine import run_outputs
from fgnet.volumes.geometry import Triple
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.reading import open_volume

SHAPE = (12, 160, 200)


@pytest.fixture(scope="module")
def base(noise_run: Callable[[Triple], list[str]]) -> list[str]:
    return noise_run(SHAPE)


@pytest.fixture(scope="module")
def whole(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run gives that nobody killed; not to be changed."""
    output = tmp_path_factory.mktemp("whole") / "out.zarr"
    run(base, output, "0.6,0.5,0.62")
    return output


def run(base: list[str], output: Path, thresholds: str, *options: str) -> None:
    command = [*base, "-o", str(output), "--decoder", "blockwise", "--threshold", thresholds, *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output


def killed(base: list[str], output: Path, thresholds: str, *options: str) -> None:
    """A run that ends once its labels are written, before anything is declared complete."""

    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiscaleWriter, "build_pyramid", end)
        with pytest.raises(AssertionError):
            run(base, output, thresholds, *options)


def read(path: Path) -> npt.NDArray[np.generic]:
    with open_volume(path) as opened:
        return opened.read(opened.box)


def files(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_a_threshold_that_was_given_up_and_is_asked_for_again_is_written_again(
    base: list[str], whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.zarr"
    killed(base, output, "0.6,0.5")
    killed(base, output, "0.6,0.62", "--resume")
    assert not (output / "thresholds/0.5").exists()
    run(base, output, "0.6,0.5", "--resume")
    np.testing.assert_array_equal(read(output / "thresholds/0.5"), read(whole / "thresholds/0.5"))
    np.testing.assert_array_equal(read(output), read(whole))
    # What was noted on the way has left no trace.
    run(base, tmp_path / "other.zarr", "0.6,0.5")
    assert files(output) == files(tmp_path / "other.zarr")


@pytest.mark.parametrize("between", [("0.5",), ("0.6", "--decoder", "waterz"), ("0.6", "--min-size", "400")])
def test_labels_of_another_run_in_between_are_written_over(
    base: list[str], whole: Path, tmp_path: Path, between: tuple[str, ...]
) -> None:
    output = tmp_path / "out.zarr"
    killed(base, output, "0.6")
    killed(base, output, *between, "--resume")
    run(base, output, "0.6", "--resume")
    np.testing.assert_array_equal(read(output), read(whole))


def test_what_a_kill_leaves_of_a_segmentation_that_is_removed_is_not_gone_on_with(
    base: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path) -> None:
        for chunk in (folder / "0" / "c").rglob("*"):
            if chunk.is_file():
                chunk.unlink()
        raise KeyboardInterrupt

    output = tmp_path / "out.zarr"
    killed(base, output, "0.6,0.5")
    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        run_outputs.open_others(output, [0.62], 3)
    monkeypatch.undo()
    run(base, output, "0.6,0.5", "--resume")
    np.testing.assert_array_equal(read(output / "thresholds/0.5"), read(whole / "thresholds/0.5"))
    assert [folder.name for folder in (output / "thresholds").iterdir() if folder.is_dir()] == ["0.5"]
