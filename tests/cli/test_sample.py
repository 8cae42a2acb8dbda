from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner

from fgnet.cli.sample import app
from fgnet.volumes.geometry import Box
from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil
from fgnet.volumes.reading import open_volume, read_gray, read_labels

SMALL = ["--shape", "4,40,48", "--voxel-size", "30,6,6", "--seed", "3"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_store_reads_back_as_the_image_with_its_labels(tmp_path: Path, zarr_format: int) -> None:
    output = tmp_path / "sample.zarr"
    code, stdout, stderr = run(output, *SMALL, "--zarr-format", zarr_format)
    assert (code, stdout) == (0, ""), stderr
    expected = make_neuropil(NeuropilOptions((4, 40, 48), (30.0, 6.0, 6.0), 3))
    box = Box.from_shape((4, 40, 48))
    with open_volume(output) as image, open_volume(output / "labels" / "neurons") as labels:
        assert np.array_equal(read_gray(image, box), expected.raw)
        assert np.array_equal(read_labels(labels, box), expected.labels)
        assert image.space.voxel_size == labels.space.voxel_size == (30.0, 6.0, 6.0)
    attributes = dict(zarr.open_group(str(output / "labels"), mode="r").attrs)
    listed = attributes["ome"]["labels"] if zarr_format == 3 else attributes["labels"]
    assert listed == ["neurons"]


def test_json_is_one_object_alone_on_stdout(tmp_path: Path) -> None:
    code, stdout, _ = run(tmp_path / "s.zarr", *SMALL, "--json")
    result = json.loads(stdout)
    assert code == 0
    assert stdout.count("\n") == 1
    assert {key: result[key] for key in ("shape", "voxel_size", "seed")} == {
        "shape": [4, 40, 48],
        "voxel_size": [30.0, 6.0, 6.0],
        "seed": 3,
    }
    assert result["output"].endswith("s.zarr")
    assert min(result["objects"], result["seconds"], result["voxels_per_second"]) > 0


def test_an_output_that_exists_is_refused_and_left_alone_unless_overwriting_is_allowed(tmp_path: Path) -> None:
    output = tmp_path / "s.zarr"
    assert run(output, *SMALL)[0] == 0
    code, stdout, stderr = run(output, *SMALL, "--seed", 4)
    assert (code, stdout) == (1, "")
    assert "exists already" in stderr
    assert "Traceback" not in stderr
    assert run(output, "--shape", "3,20,24", "--overwrite")[0] == 0
    with open_volume(output) as image, open_volume(output / "labels" / "neurons") as labels:
        assert image.shape == labels.shape == (3, 20, 24)


def test_overwriting_never_deletes_what_the_store_holds_besides_a_sample(tmp_path: Path) -> None:
    output = tmp_path / "s.zarr"
    assert run(output, *SMALL)[0] == 0
    zarr.create_group(str(output / "labels" / "proofread"), zarr_format=3)
    assert run(output, *SMALL, "--overwrite")[0] == 1
    assert (output / "labels" / "proofread").is_dir()
    assert (output / "labels" / "neurons" / "0").is_dir()


def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, _, stderr = run(tmp_path, *SMALL, "--overwrite")
    assert code == 1
    assert "never overwritten" in stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shape", "0,64,64"], 1),
        (["--shape", "8,-64,64"], 1),
        (["--voxel-size", "0,4,4"], 1),
        (["--voxel-size", "-1,4,4"], 1),
        (["--seed", "-1"], 1),
        (["--shape", "64,64"], 2),
        (["--shape", "a,b,c"], 2),
        (["--voxel-size", "10"], 2),
        (["--zarr-format", "4"], 2),
        (["--nonsense"], 2),
    ],
)
def test_bad_options_end_in_a_message_and_an_exit_code(tmp_path: Path, arguments: list[str], expected: int) -> None:
    code, stdout, stderr = run(tmp_path / "s.zarr", *arguments)
    assert (code, stdout) == (expected, "")
    assert stderr.strip()
    assert "Traceback" not in stderr
    assert not (tmp_path / "s.zarr").exists()


def test_the_preview_shows_raw_beside_labels(tmp_path: Path) -> None:
    assert run(tmp_path / "s.zarr", *SMALL, "--preview", tmp_path / "p.png")[0] == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (96, 40)


@pytest.mark.parametrize("name", ["missing/p.png", "p.txt", "folder.png"])
def test_a_preview_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    code, _, stderr = run(tmp_path / "s.zarr", *SMALL, "--preview", tmp_path / name)
    assert code == 2
    assert "preview" in stderr
    assert not (tmp_path / "s.zarr").exists()


def test_a_preview_that_fails_costs_nothing_but_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, stdout, stderr = run(tmp_path / "s.zarr", *SMALL, "--preview", tmp_path / "p.png", "--json")
    assert code == 1
    assert json.loads(stdout)["objects"] > 0
    assert "the preview cannot be written" in stderr


def test_help_starts_without_heavy_imports() -> None:
    code = "import sys, fgnet.cli.sample; sys.exit(any(m in sys.modules for m in ('numpy', 'numba', 'zarr', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
