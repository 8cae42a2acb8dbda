"""fgnet-run --voxel-size: what a file does not say, or says wrongly; the model of the tests knows 10 x 10 x 10 nm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_record import read_record
from fgnet.volumes.reading import open_volume

SHAPE = (6, 90, 100)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, section in enumerate(np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)):
        Image.fromarray(section).save(folder / f"sec_{number}.png")
    return folder


@pytest.fixture(scope="module")
def command(tiny_bundle: Path) -> list[object]:
    return ["--model", tiny_bundle, "--decoder", "none", "--threads", 1, "--backend", "onnxruntime"]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stderr


def test_a_size_that_is_not_known_is_told_and_can_be_stated(
    images: Path, command: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    assert "warning: the voxel size is not known" in run(images, *command, "-o", output)
    told = run(images, *command, "-o", output, "--voxel-size", "10,10,9", "--overwrite")
    assert "voxel size" not in told
    with open_volume(output, ndim=(4,)) as made:
        assert (made.space.voxel_size, made.space.known) == ((10, 10, 9), True)
    record = read_record(output)
    assert record is not None
    assert record["voxel_sizes"]["volume"] == record["identity"]["voxel size"] == [10, 10, 9]
    assert "complete, nothing is left" in run(images, *command, "-o", output, "--voxel-size", "10,10,9", "--resume")
    assert "voxel size was" in run(images, *command, "-o", output, "--voxel-size", "9,9,9", "--resume", code=1)


@pytest.mark.parametrize("options", [[], ["--processes", 2]])
def test_images_can_be_rescaled_once_their_size_is_stated(
    images: Path, command: list[object], tmp_path: Path, options: list[object]
) -> None:
    refused = run(images, *command, "-o", tmp_path / "o.zarr", "--rescale", "10,10,10", code=1)
    assert "give it by --voxel-size" in refused
    rescale = ["--rescale", "auto", "--voxel-size", "20,8,5", *options]
    run(images, *command, "-o", tmp_path / "o.zarr", *rescale)
    volume = zarr.create_array(str(tmp_path / "v.zarr"), shape=SHAPE, chunks=SHAPE, dtype="u1")
    with open_volume(images) as gray:
        volume[:] = gray.read(gray.box)
    volume.attrs["resolution"] = [20, 8, 5]
    run(tmp_path / "v.zarr", *command, "-o", tmp_path / "known.zarr", "--rescale", "auto")
    with open_volume(tmp_path / "o.zarr", ndim=(4,)) as ours, open_volume(tmp_path / "known.zarr", ndim=(4,)) as theirs:
        assert ours.space == theirs.space
        np.testing.assert_array_equal(ours.read(ours.box), theirs.read(theirs.box))


def test_a_gap_in_the_numbers_of_images_is_told(images: Path, command: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "gap"
    folder.mkdir()
    for number in (0, 1, 2, 5):
        (folder / f"sec_{number}.png").symlink_to(images / f"sec_{number}.png")
    told = run(folder, *command, "-o", tmp_path / "o.zarr", "--dry-run")
    assert "a gap between sec_2.png and sec_5.png" in told
    assert "gap" not in run(images, *command, "-o", tmp_path / "o.zarr", "--dry-run")


def test_a_size_that_contradicts_the_file_is_taken_and_told(command: list[object], tmp_path: Path) -> None:
    volume = zarr.create_array(str(tmp_path / "v.zarr"), data=np.zeros(SHAPE, np.uint8))
    volume.attrs["resolution"] = [30, 6, 6]
    common = [tmp_path / "v.zarr", *command, "-o", tmp_path / "o.zarr"]
    assert "10 x 10 x 10 nm, as --voxel-size says; the file says 30 x 6 x 6 nm" in run(
        *common, "--voxel-size", "10,10,10"
    )
    with open_volume(tmp_path / "o.zarr", ndim=(4,)) as made:
        assert made.space.voxel_size == (10, 10, 10)
    assert "--voxel-size says" not in run(*common, "--voxel-size", "30,6,6", "--overwrite")


@pytest.mark.parametrize("text", ["10", "10,10", "a,b,c", "0,1,1", "nan,1,1", "1,1,inf"])
def test_what_is_no_size_is_refused(images: Path, command: list[object], text: str) -> None:
    told = run(images, *command, "--voxel-size", text, code=2)
    assert "--voxel-size" in json.dumps(told)
