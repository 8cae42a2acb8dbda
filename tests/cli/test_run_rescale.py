"""fgnet-run on volumes of other voxel sizes than the model knows; that of the tests was trained on 10 x 10 x 10 nm."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_journal import journal_path
from fgnet.engine.run_outputs import network_store
from fgnet.volumes.reading import open_volume

SHAPE = (10, 140, 150)


def write(path: Path, resolution: tuple[float, ...] | None) -> Path:
    values = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    array = zarr.create_array(str(path), shape=SHAPE, chunks=(8, 64, 64), dtype="u1")
    array[:] = values
    if resolution:
        array.attrs["resolution"] = list(resolution)
    return path


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Voxels of 20 x 8 x 5 nm."""
    return write(tmp_path_factory.mktemp("other") / "v.zarr", (20.0, 8.0, 5.0))


@pytest.fixture(scope="module")
def command(tiny_bundle: Path) -> list[str]:
    options = ["--backend", "onnxruntime", "--threads", "1", "--decoder", "none"]
    return ["--model", str(tiny_bundle), *options]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def record(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.with_name(output.name + ".run.json").read_text())
    return found


@pytest.fixture(scope="module")
def rescaled(volume: Path, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with --rescale auto writes; not to be changed."""
    output = tmp_path_factory.mktemp("rescaled") / "out.zarr"
    code, stdout, stderr = run(volume, *command, "-o", output, "--rescale", "auto", "--json")
    assert (code, json.loads(stdout)["voxels"]) == (0, np.prod(SHAPE)), stderr
    assert "warning" not in stderr
    return output


def test_the_output_has_the_voxels_of_the_volume(rescaled: Path, volume: Path) -> None:
    with open_volume(rescaled, ndim=(4,)) as made, open_volume(volume) as gray:
        assert made.shape == (3, *SHAPE)
        assert made.space == gray.space
        assert len(np.unique(made.read(made.box))) > 20
    told = record(rescaled)
    assert told["voxel_sizes"]["network"] == [10.0, 10.0, 10.0]
    assert told["voxel_sizes"]["warning"] is None
    assert told["network_plan"]["volume"] == [20, 112, 75]
    assert not list(rescaled.parent.glob("*.network*"))


def test_a_size_that_was_not_trained_on_is_told_and_kept_in_the_record(
    volume: Path, command: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    assert run(volume, *command, "-o", output, "--roi", ":4,:64,:64")[0] == 0
    for options in ([], ["--rescale", "20,10,10"]):
        code, _, stderr = run(volume, *command, "-o", output, "--roi", ":4,:64,:64", "--overwrite", *options)
        size = "20 x 8 x 5 nm" if not options else "20 x 10 x 10 nm"
        assert code == 0
        assert f"warning: voxels of {size} differ by more than a quarter" in stderr
        assert record(output)["voxel_sizes"]["warning"].startswith(f"voxels of {size} differ")
    assert record(output)["voxel_sizes"]["volume"] == [20.0, 8.0, 5.0]


@pytest.mark.parametrize("asked", ["10,8,10", "auto"])
def test_the_volumes_own_size_gives_the_bytes_of_a_run_without(command: list[str], tmp_path: Path, asked: str) -> None:
    near = write(tmp_path / "v.zarr", (10.0, 8.0, 10.0))
    outputs = tmp_path / "plain.zarr", tmp_path / "asked.zarr"
    for output, options in zip(outputs, ([], ["--rescale", asked]), strict=True):
        code, _, stderr = run(near, *command, "-o", output, "--roi", ":8,:130,:", *options)
        assert code == 0, stderr
        assert "warning" not in stderr
    plain, same = map(files, outputs)
    assert plain == same
    assert record(outputs[0])["identity"] == record(outputs[1])["identity"]


def test_processes_and_a_region_give_the_bytes_of_the_whole(
    rescaled: Path, volume: Path, command: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    options = ["--rescale", "10,10,10", "--processes", "2", "--roi", "2:9,5:,:100"]
    code, _, stderr = run(volume, *command, "-o", output, *options)
    assert code == 0, stderr
    with open_volume(output, ndim=(4,)) as made, open_volume(rescaled, ndim=(4,)) as whole:
        np.testing.assert_array_equal(made.read(made.box), whole.read(whole.box)[:, 2:9, 5:, :100])


def killed_in_time(program: list[str], journal: Path) -> bool:
    """Whether a run is killed once a chunk of the network's grid is finished, and not through before."""
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if journal.exists() and journal.read_bytes().count(b"\n") > 1:
            break
        time.sleep(0.002)
    process.kill()
    return process.wait() == -9


def test_a_run_that_is_killed_goes_on_and_gives_the_same_bytes(
    rescaled: Path, volume: Path, command: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out.zarr"
    full = [volume, *command, "-o", output, "--rescale", "auto"]
    program = [*map(str, [Path(sys.executable).parent / "fgnet-run", *full, "--overwrite"])]
    assert any(killed_in_time(program, journal_path(network_store(output))) for _ in range(5)), "it is too fast"
    code, _, stderr = run(*full, "--resume")
    assert code == 0, stderr
    assert files(output) == files(rescaled)
    assert not list(tmp_path.glob("*.network*"))


def test_a_plan_is_of_the_networks_grid_and_what_it_writes_of_the_volumes(volume: Path, command: list[str]) -> None:
    code, stdout, _ = run(volume, *command, "--rescale", "auto", "--dry-run", "--json")
    told = json.loads(stdout)
    assert (code, told["network_voxel_size"]) == (0, [10.0, 10.0, 10.0])
    assert told["plan"]["region"] == "0:20,0:112,0:75"
    assert told["work"]["bytes_of_affinities"] == 3 * np.prod(SHAPE)


@pytest.mark.parametrize(
    ("resolution", "asked", "code", "message"),
    [
        (None, "auto", 1, "the voxel size is not known"),
        (None, "10,10,10", 1, "the voxel size is not known"),
        ((10.0, 10.0, 10.0), "10,10,1000", 1, "axis x: one voxel would become 100"),
        ((10.0, 10.0, 10.0), "0,10,10", 1, "is not above 0"),
        ((10.0, 10.0, 10.0), "nan,10,10", 2, "not three finite lengths"),
        ((10.0, 10.0, 10.0), "fine", 2, "neither auto nor a voxel size"),
        ((10.0, 10.0, 10.0), "0,255", 2, "--gray-range"),
    ],
)
def test_what_cannot_be_rescaled_is_refused(
    command: list[str], tmp_path: Path, resolution: Any, asked: str, code: int, message: str
) -> None:
    volume = write(tmp_path / "v.zarr", resolution)
    result = run(volume, *command, "-o", tmp_path / "o.zarr", "--rescale", asked)
    assert result[0] == code
    assert message in result[2]
    assert not (tmp_path / "o.zarr").exists()
