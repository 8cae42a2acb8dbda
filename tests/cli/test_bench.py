from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner, Result

from fgnet.benchmarks import report
from fgnet.benchmarks.result_file import without_folders
from fgnet.cli.bench import app
from fgnet.engine.bundle import MANIFEST, load_bundle

QUICK = ["--blocks", 2, "--repeats", 1, "--threads", 1, "--together", "--device", "cpu", "--no-roofline"]


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
    # What it was called with can be repeated, and tells no folder of this machine.
    assert (found["benchmark"], found["invocation"][:2]) == ("engine", ["fgnet-bench", "engine"])
    assert {"tiny.bundle", "--backend", "onnxruntime", "--no-roofline", "speed.json"} <= set(found["invocation"])
    assert str(tmp_path.parent) not in json.dumps(found["invocation"])


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
        (["--report", __file__], "it is no folder"),
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


def test_a_report_is_drawn_beside_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="reports need the extra fgnet[report]")
    pytest.importorskip("jinja2", reason="reports need the extra fgnet[report]")
    affinities = zarr.create_array(str(tmp_path / "a.zarr"), shape=(3, 4, 16, 16), dtype="uint8")
    affinities[:] = np.random.default_rng(0).integers(0, 256, affinities.shape, dtype=np.uint8)
    options = ["--affinities", tmp_path / "a.zarr", "--shape", "4,16,16", "--fragments", "affinity", "--workers", "1"]
    command = ["decode", *options, "--repeats", "1", "--report", tmp_path / "new" / "report"]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new" / "report"
    told = json.loads((folder / "decode.json").read_text())
    page = (folder / "decode.html").read_text()
    assert page.count("<svg") == 1
    assert "fgnet-bench decode --affinities a.zarr --shape 4,16,16" in page
    assert told["results"][0]["name"] in page
    assert datetime.fromisoformat(told["recorded"]) <= datetime.now(UTC)
    again = CliRunner().invoke(app, ["report", str(tmp_path), *[str(folder / "decode.json")] * 2])
    assert (again.exit_code, again.stdout) == (0, f"{tmp_path / 'index.html'}\n")
    assert (tmp_path / "index.html").read_text().count("<svg") == 2


def test_what_is_no_result_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    result = CliRunner().invoke(app, ["report", str(tmp_path), str(tmp_path / "x.json")])
    assert result.exit_code == 1
    assert "x.json: it is no result of fgnet-bench" in result.stderr
    assert not (tmp_path / "index.html").exists()


def test_a_report_without_its_packages_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["decode", "--report", str(tmp_path)])
    assert result.exit_code == 1
    assert "pip install 'fgnet[report]'" in result.stderr
    assert "neuropil" not in result.stderr


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--shape", "--shape"),
        ("64,512,512", "64,512,512"),
        ("v.zarr/raw", "v.zarr/raw"),
        ("../data/v.h5:raw", "../data/v.h5:raw"),
        ("/home/me/v.zarr/raw/s0", "v.zarr/raw/s0"),
        ("/home/me/.cache/v.h5:volumes/raw", "v.h5:volumes/raw"),
        ("~/sections", "sections"),
        ("--volume=/home/me/v.tif", "--volume=v.tif"),
        ("--volume=/home/my data/v.tif", "--volume=v.tif"),
        ("--decoder blockwise --save-graph /home/me/t.zarr", "--decoder blockwise --save-graph t.zarr"),
    ],
)
def test_a_recorded_command_names_no_folder_of_this_machine(argument: str, told: str) -> None:
    assert without_folders(argument) == told
