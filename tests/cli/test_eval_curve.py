from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree
from typer.testing import CliRunner

from fgnet.cli import eval_curve_report, run_decoding
from fgnet.cli.eval import app
from fgnet.cli.run import app as run_app
from fgnet.volumes.errors import OutputError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_image, create_labels

SHAPE = (16, 64, 72)
NM = Space((10.0, 10.0, 10.0))


def invoke(command: Any, *arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def printed(command: Any, *arguments: object) -> dict[str, Any]:
    code, stdout, stderr = invoke(command, *arguments, "--json")
    assert code == 0, stderr
    result: dict[str, Any] = json.loads(stdout)
    return result


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw.zarr, labels.zarr and what fgnet-run made, with its affinities; not to be changed."""
    folder = tmp_path_factory.mktemp("curve")
    rng = np.random.default_rng(4)
    points = rng.uniform(0, SHAPE, (40, 3))
    distances, nearest = cKDTree(points * (2, 1, 1)).query(np.indices(SHAPE).reshape(3, -1).T * (2, 1, 1), k=2)
    wall = np.diff(distances).reshape(SHAPE) < 3
    labels = (nearest[:, 0].reshape(SHAPE) + 1).astype(np.uint64)
    raw = np.clip(np.where(wall, 70, 170) + rng.normal(0, 12, SHAPE), 0, 255).astype(np.uint8)
    image = create_image(folder / "raw.zarr", shape=SHAPE, dtype=np.uint8, axes="zyx", space=NM)
    truth = create_labels(folder / "labels.zarr", shape=SHAPE, space=NM)
    for writer, values in ((image, raw), (truth, labels)):
        writer.write(Box.from_shape(SHAPE), values)
        writer.finish()
    printed(run_app, folder / "raw.zarr", "-o", folder / "run.zarr", "--threshold", 0.7, "--save-affinities")
    shutil.move(folder / "run.zarr" / "affinities", folder / "affinities.zarr")
    return folder


def test_figures_are_those_of_a_run_and_its_score(tissue: Path) -> None:
    curve = printed(app, "curve", tissue / "affinities.zarr", tissue / "labels.zarr", "--thresholds", "0.3,0.7")
    alone = printed(app, tissue / "run.zarr", tissue / "labels.zarr")
    low, high = curve["curve"]
    assert (curve["region"], curve["test"]) == ("0:16,0:64,0:72", None)
    assert high == {"threshold": 0.7, **{name: alone[name] for name in high if name != "threshold"}}
    assert low["segments"] > high["segments"] > 1


@pytest.mark.parametrize(
    ("options", "decoder", "scoring"),
    [
        ([], "waterz", "quantile"),
        (["--scoring", "mean"], "blockwise", "mean"),
        (["--quantile", 50], "waterz", "quantile"),
    ],
    ids=str,
)
def test_the_decoder_is_the_one_that_a_run_would_take(
    tissue: Path, tmp_path: Path, options: list[object], decoder: str, scoring: str
) -> None:
    found = tmp_path / "run.zarr"
    told = printed(run_app, tissue / "raw.zarr", "-o", found, "--threshold", 0.7, *options)
    data = tissue / "affinities.zarr", tissue / "labels.zarr"
    curve = printed(app, "curve", *data, "--thresholds", 0.7, *options)
    assert (told["decoder"], told["scoring"]) == (curve["decoder"], curve["scoring"]) == (decoder, scoring)
    alone = printed(app, found, tissue / "labels.zarr")
    assert all(curve["curve"][0][name] == alone[name] for name in ("voi", "arand", "segments"))
    assert f"decoder {decoder}, fragments " in invoke(app, "curve", *data, "--thresholds", 0.7, *options)[1]


def test_large_regions_are_decoded_as_a_run_would_decode_them(tissue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tissue / "affinities.zarr", tissue / "labels.zarr"
    regions = ["--choose-on", ":4,:,:", "--crop", "4:,:,:", "--thresholds", 0.7]
    monkeypatch.setattr(run_decoding, "MOST_FOR_WATERZ", 12 * 64 * 72 - 1)
    result = printed(app, "curve", *data, *regions)
    # One decoder for both, chosen by the larger one.
    assert (result["decoder"], result["scoring"], result["quantile"]) == ("blockwise", "mean", None)
    assert "too large for waterz" in invoke(app, "curve", *data, *regions)[2]
    assert printed(app, "curve", *data, *regions, "--decoder", "waterz")["decoder"] == "waterz"


def test_floats_are_decoded_by_the_decoder_that_reads_them(tissue: Path, tmp_path: Path) -> None:
    with open_volume(tissue / "affinities.zarr", ndim=(4,)) as made, h5py.File(tmp_path / "a.h5", "w") as file:
        file["floats"] = made.read(made.box).astype(np.float32) / 255
    options = ["--scoring", "mean", "--thresholds", 0.7, "--crop", ":4,:,:"]
    result = printed(app, "curve", tmp_path / "a.h5", tissue / "labels.zarr", *options)
    assert (result["decoder"], result["scoring"]) == ("waterz", "mean")


def test_a_threshold_is_chosen_on_one_region_and_tested_on_another(tissue: Path, tmp_path: Path) -> None:
    data = tissue / "affinities.zarr", tissue / "labels.zarr"
    options = ["--thresholds", "0.1:0.9:0.2", "--min-size", 20]
    result = printed(
        app, "curve", *data, "--choose-on", "0:8,:,:", "--crop", "8:16,:,:", *options,
        "--plot", tmp_path / "c.png", "--table", tmp_path / "c.csv",
    )  # fmt: skip
    validation = printed(app, "curve", *data, "--crop", "0:8,:,:", *options)
    assert result["curve"] == validation["curve"]
    best = min(result["curve"], key=lambda row: row["voi"])
    assert result["best_threshold"] == best["threshold"] == validation["best_threshold"]
    (tested,) = printed(app, "curve", *data, "--crop", "8:16,:,:", "--thresholds", best["threshold"], "--min-size", 20)[
        "curve"
    ]
    assert result["test"] == {"region": "8:16,0:64,0:72", "unlabelled": 0, **tested}

    titles, *rows = (line.split(",") for line in (tmp_path / "c.csv").read_text().splitlines())
    assert titles[:2] == ["threshold", "voi"]
    assert [float(row[1]) for row in rows] == [row["voi"] for row in result["curve"]]
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 800
        assert len(picture.convert("RGB").getcolors(10**6)) > 50


def test_a_threshold_may_be_chosen_on_other_files(tissue: Path, tmp_path: Path) -> None:
    for name in ("affinities.zarr", "labels.zarr"):
        shutil.copytree(tissue / name, tmp_path / name)
    other = ["--choose-affinities", tmp_path / "affinities.zarr", "--choose-labels", tmp_path / "labels.zarr"]
    data = tissue / "affinities.zarr", tissue / "labels.zarr"
    result = printed(app, "curve", *data, "--thresholds", "0.4,0.6", *other, "--table", tmp_path / "c.json")
    assert result["region"] == result["test"]["region"] == "0:16,0:64,0:72"
    assert result["test"]["voi"] == min(row["voi"] for row in result["curve"])
    assert json.loads((tmp_path / "c.json").read_text()) == result


def test_voxels_that_nobody_labelled_are_not_scored(tissue: Path, tmp_path: Path) -> None:
    made, file = tissue / "affinities.zarr", tmp_path / "t.h5"
    with open_volume(tissue / "labels.zarr") as truth, h5py.File(file, "w") as written:
        ids, known = truth.read(truth.box).astype(np.int64), np.indices(SHAPE)[2] < 40
        written["labels"], written["known"], written["marked"] = ids, known, np.where(known, ids, -1)
    options = ["--thresholds", "0.5,0.7", "--choose-on", ":8,:,:", "--crop", "8:,:,:"]
    result = printed(app, "curve", made, f"{file}:marked", *options)
    assert result["unlabelled"] == result["test"]["unlabelled"] == 8 * 64 * 32
    assert printed(app, "curve", made, f"{file}:labels", "--mask", f"{file}:known", *options) == result
    assert result["curve"] != printed(app, "curve", made, f"{file}:labels", *options)["curve"]
    assert "16384 of 36864 voxels are labelled by nobody" in invoke(app, "curve", made, f"{file}:marked", *options)[2]
    shutil.copytree(made, tmp_path / "other.zarr")
    other = ["--choose-affinities", tmp_path / "other.zarr", "--choose-labels", tissue / "labels.zarr"]
    other += ["--choose-mask", f"{file}:known"]
    chosen = printed(app, "curve", made, f"{file}:marked", *options, *other)
    assert (chosen["curve"], chosen["test"]) == (result["curve"], result["test"])


def test_people_read_what_was_chosen_where(tissue: Path) -> None:
    data = tissue / "affinities.zarr", tissue / "labels.zarr"
    code, stdout, _ = invoke(app, "curve", *data, "--thresholds", "0.5", "--crop", "8:,:,:")
    assert code == 0
    assert "no test score" in stdout
    _, stdout, _ = invoke(app, "curve", *data, "--thresholds", "0.5", "--crop", "8:,:,:", "--choose-on", ":8,:,:")
    assert "test on 8:16,0:64,0:72 at 0.5: VOI" in stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--choose-on", "0:9,:,:", "--crop", "8:,:,:"], "which share 8:9,0:64,0:72"),
        (["--choose-on", "0:8,:,:"], "which share 0:8,0:64,0:72"),
        (["--choose-affinities", "affinities.zarr", "--choose-labels", "labels.zarr"], "which share 0:16"),
        (["--choose-affinities", "affinities.zarr/0", "--choose-labels", "labels.zarr/0"], "which share 0:16"),
        (["--thresholds", "0.5:2:0.5"], "goes beyond 0 to 1"),
        (["--quantile", "51"], "quantile"),
        (["--min-size", "100000000"], "no voxel of the ground truth is left"),
    ],
    ids=str,
)
def test_what_makes_no_test_is_refused(
    tissue: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tissue)
    code, stdout, stderr = invoke(app, "curve", "affinities.zarr", tissue / "labels.zarr", *options, "--json")
    assert (code, stdout) == (1, "")
    assert message in stderr


def test_other_arrays_are_no_affinities(tissue: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["two"] = np.zeros((2, *SHAPE), np.uint8)
        file["other"] = np.zeros((3, 16, 64, 71), np.uint8)
    for name, message in (("two", "there are 2 channels"), ("other", "shape (16, 64, 71)")):
        code, _, stderr = invoke(app, "curve", f"{tmp_path / 'a.h5'}:{name}", tissue / "labels.zarr")
        assert code == 1
        assert message in stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--choose-labels", "t.zarr"],
        ["--choose-mask", "m.zarr", "--choose-on", ":8,:,:"],
        ["--decoder", "blockwise", "--scoring", "quantile"],
        ["--scoring", "mean", "--quantile", "50"],
        ["--decoder", "waterz", "--scoring", "mean", "--quantile", "50"],
        ["--plot", "c.pdf"],
        ["--table", "c.txt"],
        ["--by", "luck"],
        ["--border", "inf"],
    ],
    ids=str,
)
def test_bad_options_end_in_exit_code_2(options: list[str]) -> None:
    assert invoke(app, "curve", "a.zarr", "t.zarr", *options)[0] == 2


@pytest.mark.parametrize("option", ["--table", "--plot"])
def test_what_cannot_be_written_is_said_before_anything_is_decoded(tmp_path: Path, option: str) -> None:
    (tmp_path / "c.csv").mkdir()
    (tmp_path / "file").touch()
    place = tmp_path / ("c.csv" if option == "--table" else "file/c.png")
    code, stdout, stderr = invoke(app, "curve", tmp_path / "none.zarr", tmp_path / "none.zarr", option, place)
    assert (code, stdout) == (1, "")
    assert f"{place}: cannot be written" in stderr


def test_a_table_that_fails_leaves_the_result(tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("cannot be written: the disk is full")

    monkeypatch.setattr(eval_curve_report, "write_text", full)
    data = tissue / "affinities.zarr", tissue / "labels.zarr"
    options = ["--thresholds", "0.5", "--crop", ":4,:,:", "--table", tmp_path / "c.csv", "--json"]
    code, stdout, stderr = invoke(app, "curve", *data, *options)
    assert code == 1
    assert json.loads(stdout)["best_threshold"] == 0.5
    assert "the disk is full" in stderr


def test_a_boundary_just_outside_of_a_crop_masks_what_lies_near_it(tmp_path: Path) -> None:
    truth, affinities = np.ones((4, 32, 48), np.uint64), np.full((3, 4, 32, 48), 255, np.uint8)
    truth[..., :16] = 2
    # Torn to pieces, but only where the border is.
    affinities[..., 14:19] = 0
    labels = create_labels(tmp_path / "t.zarr", shape=truth.shape, space=NM)
    made = create_image(tmp_path / "a.zarr", shape=affinities.shape, dtype=np.uint8, axes="czyx", space=NM)
    for writer, values in ((labels, truth), (made, affinities)):
        writer.write(Box.from_shape(truth.shape), values)
        writer.finish()
    options = ["--crop", ":,:,16:48", "--border", 20, "--thresholds", "0.5", "--decoder", "blockwise"]
    result = printed(app, "curve", tmp_path / "a.zarr", tmp_path / "t.zarr", *options, "--fragments", "affinity")
    assert (result["curve"][0]["voi"], result["curve"][0]["segments"]) == (0, 1)
