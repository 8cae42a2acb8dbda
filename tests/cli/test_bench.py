from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fgnet.cli.bench import app
from fgnet.engine.bundle import MANIFEST, load_bundle

QUICK = ["--blocks", 2, "--repeats", 1, "--threads", 1, "--together", "--device", "cpu"]


def bench(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["engine", *map(str, arguments)])
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def bare(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle without checkpoint."""
    folder = tmp_path / "bare.bundle"
    folder.mkdir()
    for file in tiny_bundle.iterdir():
        (folder / file.name).symlink_to(file)
    manifest = replace(load_bundle(tiny_bundle).manifest, checkpoint=None)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def test_json_is_one_object_on_stdout_and_in_the_file(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the row needs the extra fgnet[cpu]")
    file = tmp_path / "speed.json"
    result = bench(tiny_bundle, *QUICK, "--backend", "onnxruntime", "--json", "-o", file)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert found == json.loads(file.read_text())
    assert {row["name"] for row in found["results"]} >= {"torch fp32 (eager)", "onnxruntime fp32"}
    assert (found["model"], found["patch"], found["blocks"], found["gray"]) == (
        "tiny",
        [4, 64, 64],
        2,
        "synthetic neuropil",
    )
    assert "round 1 of at most 1" in result.stderr


def test_without_a_checkpoint_the_table_says_that_the_reference_is_missing(bare: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the row needs the extra fgnet[cpu]")
    result = bench(bare, *QUICK, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.stderr
    assert "onnxruntime fp32" in result.stdout
    assert "voxels/s" in result.stdout
    assert "no eager PyTorch to compare with: the bundle holds no checkpoint" in result.stdout
    assert "did not settle" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "tflite"], "there is no backend 'tflite'"),
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--precision", "int8", "--device", "cpu"], "no graphs of precision int8"),
        (["--volume", "nowhere.zarr", "--device", "cpu"], "nowhere.zarr"),
        (["--output", "no/such/folder/speed.json"], "the folder does not exist"),
    ],
)
def test_bad_input_is_one_line(tiny_bundle: Path, options: list[str], message: str) -> None:
    result = bench(tiny_bundle, *options)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("error:") == 1


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    result = bench(tmp_path)
    assert result.exit_code == 1
    assert "no bundle here" in result.stderr


def test_a_volume_that_is_too_small_is_refused_with_both_sizes(
    tiny_bundle: Path, shared_data: Callable[[str], Path]
) -> None:
    tissue = f"{shared_data('cremi_B_5x500x500.h5')}:raw"
    result = bench(tiny_bundle, "--volume", tissue, "--blocks", 99, "--device", "cpu")
    assert result.exit_code == 1
    assert "it has 5 x 500 x 500 voxels, and 99 blocks of this model need 198 x 64 x 64" in result.stderr


def test_a_volume_takes_the_place_of_synthetic_tissue(bare: Path, shared_data: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime", reason="the row needs the extra fgnet[cpu]")
    tissue = f"{shared_data('cremi_B_5x500x500.h5')}:raw"
    result = bench(bare, *QUICK, "--backend", "onnxruntime", "--volume", tissue, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["gray"] == "raw"
