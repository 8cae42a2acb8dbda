from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from fgnet.cli import eval_report
from fgnet.cli.eval import Protocol, app
from fgnet.postproc.metrics import score
from fgnet.postproc.protocols import PROTOCOLS, ProtocolName
from fgnet.volumes.errors import OutputError
from fgnet.volumes.geometry import Box
from fgnet.volumes.space import UNKNOWN, Space
from fgnet.volumes.writing import create_labels

SHAPE = (6, 20, 24)
NM = Space((30.0, 6.0, 6.0))


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def figures(*arguments: object) -> dict[str, Any]:
    code, stdout, stderr = run(*arguments, "--json")
    assert code == 0, stderr
    assert stdout.count("\n") == 1
    result: dict[str, Any] = json.loads(stdout)
    return result


def write(path: Path, labels: npt.NDArray[Any], space: Space = NM) -> Path:
    writer = create_labels(path, shape=labels.shape, space=space)
    writer.write(Box.from_shape(labels.shape), labels.astype(np.uint64))
    writer.finish()
    return path


@pytest.fixture
def labels() -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 6, (3, 5, 6))
    return blocks.repeat(2, 0).repeat(4, 1).repeat(4, 2)


@pytest.fixture
def segments(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(1)
    return np.where(rng.random(SHAPE) < 0.1, rng.integers(0, 9, SHAPE), labels)


def test_the_protocols_offered_are_those_of_the_metrics() -> None:
    assert get_args(Protocol) == get_args(ProtocolName) == tuple(PROTOCOLS)


def test_a_segmentation_equal_to_the_truth_scores_zero(tmp_path: Path, labels: npt.NDArray[np.int64]) -> None:
    truth = write(tmp_path / "t.zarr", labels)
    result = figures(truth, truth)
    assert [result[key] for key in ("voi", "voi_split", "voi_merge", "arand")] == pytest.approx([0, 0, 0, 0], abs=1e-12)
    assert (result["precision"], result["recall"]) == (1, 1)
    assert result["objects"] == result["segments"] == 5
    assert result["voxels"] == np.count_nonzero(labels)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_figures_are_those_of_the_metrics(
    tmp_path: Path, labels: npt.NDArray[np.int64], segments: npt.NDArray[np.int64], protocol: ProtocolName
) -> None:
    found, truth = write(tmp_path / "s.zarr", segments), write(tmp_path / "t.zarr", labels)
    result = figures(found, truth, "--protocol", protocol, "--border", 0)
    expected = score(segments, labels, protocol=protocol)
    assert result["voi"] == pytest.approx(expected.voi)
    assert result["voi"] == pytest.approx(result["voi_split"] + result["voi_merge"])
    assert result["arand"] == pytest.approx(expected.arand)
    assert result["cremi_score"] == pytest.approx(np.sqrt(expected.voi * expected.arand))
    assert (result["protocol"], result["crop"], result["min_size"]) == (protocol, "0:6,0:20,0:24", 0)


def test_small_objects_are_those_with_few_voxels_in_the_crop(tmp_path: Path) -> None:
    labels = np.ones(SHAPE, np.int64)
    labels[0:2, :2, :2] = 2  # 8 voxels, 4 of them in the crop
    labels[2:, 10:, :] = 3
    truth = write(tmp_path / "t.zarr", labels)
    assert figures(truth, truth, "--crop", "1:4,:,:", "--min-size", 4)["objects"] == 3
    result = figures(truth, truth, "--crop", "1:4,:,:", "--min-size", 5)
    assert (result["objects"], result["crop"], result["min_size"]) == (2, "1:4,0:20,0:24", 5)
    assert result["voxels"] == 3 * 20 * 24 - 4


def test_only_the_crop_is_scored(
    tmp_path: Path, labels: npt.NDArray[np.int64], segments: npt.NDArray[np.int64]
) -> None:
    found, truth = write(tmp_path / "s.zarr", segments), write(tmp_path / "t.zarr", labels)
    result = figures(found, truth, "--crop", "2:5,:,4:")
    assert result["arand"] == pytest.approx(score(segments[2:5, :, 4:], labels[2:5, :, 4:]).arand)


def test_a_segmentation_of_a_region_is_matched_by_its_offset(
    tmp_path: Path, labels: npt.NDArray[np.int64], segments: npt.NDArray[np.int64]
) -> None:
    truth = write(tmp_path / "t.zarr", labels)
    found = write(tmp_path / "s.zarr", segments[2:, 4:], NM.shifted((2, 4, 0)))
    result = figures(found, truth, "--crop", "2:,4:,:")
    assert result["voi"] == pytest.approx(score(segments[2:, 4:], labels[2:, 4:]).voi)
    code, stdout, stderr = run(found, truth)
    assert (code, stdout) == (1, "")
    assert "give --crop 2:6,4:20,0:24" in stderr


def test_a_region_that_begins_where_the_truth_does_is_matched_too(
    tmp_path: Path, labels: npt.NDArray[np.int64], segments: npt.NDArray[np.int64]
) -> None:
    truth = write(tmp_path / "t.zarr", labels)
    # Nanometres that were micrometres before.
    found = write(tmp_path / "s.zarr", segments[:3], Space((30.0000001, 6.0, 6.0)))
    result = figures(found, truth, "--crop", ":3,:,:")
    assert result["voi"] == pytest.approx(score(segments[:3], labels[:3]).voi)
    code, _, stderr = run(found, truth, "--crop", ":3,:,:")
    assert code == 0
    assert "both say that they begin at the same place" in stderr


def test_voxel_sizes_that_differ_are_said(tmp_path: Path, labels: npt.NDArray[np.int64]) -> None:
    truth, other = write(tmp_path / "t.zarr", labels), Space((8.0, 8.0, 8.0))
    code, _, stderr = run(write(tmp_path / "s.zarr", labels, other), truth)
    assert code == 0
    assert "voxel sizes differ (8 x 8 x 8 and 30 x 6 x 6 nm)" in stderr
    code, _, stderr = run(write(tmp_path / "part.zarr", labels[:3], other), truth)
    assert code == 1
    assert "shape (3, 20, 24)" in stderr
    assert "voxel sizes differ (8 x 8 x 8 and 30 x 6 x 6 nm)" in stderr


def test_volumes_of_one_shape_are_scored_voxel_by_voxel_and_differing_offsets_are_said(
    tmp_path: Path, labels: npt.NDArray[np.int64]
) -> None:
    truth, found = write(tmp_path / "t.zarr", labels), write(tmp_path / "s.zarr", labels, NM.shifted((1, 0, 0)))
    code, stdout, stderr = run(found, truth)
    assert code == 0
    assert stdout.startswith("VOI    0.0000")
    assert "offsets differ (30 x 0 x 0 and 0 x 0 x 0 nm), one of them 0 or none" in stderr
    (note,) = figures(found, truth)["notes"]
    assert note in stderr


def test_volumes_of_one_shape_that_both_say_where_they_lie_are_matched_there(
    tmp_path: Path, labels: npt.NDArray[np.int64], segments: npt.NDArray[np.int64]
) -> None:
    truth = write(tmp_path / "t.zarr", labels, NM.shifted((5, 0, 0)))
    found = write(tmp_path / "s.zarr", segments, NM.shifted((7, 0, 4)))
    code, stdout, stderr = run(found, truth)
    assert (code, stdout) == (1, "")
    assert "other offsets (210 x 0 x 24 and 150 x 0 x 0 nm)" in stderr
    assert "give --crop 2:6,0:20,4:24" in stderr
    result = figures(found, truth, "--crop", "2:6,0:20,4:24")
    assert result["voi"] == pytest.approx(score(segments[:-2, :, :-4], labels[2:, :, 4:]).voi)
    assert result["notes"] == []
    code, _, stderr = run(write(tmp_path / "far.zarr", segments, NM.shifted((50, 0, 0))), truth)
    assert code == 1
    assert "other offsets (1500 x 0 x 0 and 150 x 0 x 0 nm)" in stderr
    assert "they share no voxel" in stderr


def test_offsets_that_differ_by_rounding_are_the_same(tmp_path: Path, labels: npt.NDArray[np.int64]) -> None:
    truth = write(tmp_path / "t.zarr", labels, NM.shifted((5, 0, 0)))
    found = write(tmp_path / "s.zarr", labels, Space(NM.voxel_size, (150.0000001, 0.0, 0.0)))
    assert (figures(found, truth)["notes"], figures(found, truth)["voi"]) == ([], 0)


def test_voxels_near_boundaries_can_be_left_out(tmp_path: Path, labels: npt.NDArray[np.int64]) -> None:
    truth = write(tmp_path / "t.zarr", labels)
    assert figures(truth, truth, "--border", 6)["voxels"] < figures(truth, truth)["voxels"]
    code, _, stderr = run(truth, write(tmp_path / "u.zarr", labels, UNKNOWN), "--border", 6)
    assert code == 1
    assert "voxel size is not known" in stderr


def test_a_border_larger_than_the_volume_leaves_nothing(tmp_path: Path, labels: npt.NDArray[np.int64]) -> None:
    truth = write(tmp_path / "t.zarr", labels)
    code, _, stderr = run(truth, truth, "--border", "1e308")
    assert code == 1
    assert "no voxel of the ground truth is left" in stderr


def test_the_challenge_leaves_out_25_nm_at_boundaries(tmp_path: Path) -> None:
    labels = np.repeat([3, 0], 12).reshape(1, 1, 24) * np.ones((2, 4, 1), np.int64)
    found = np.where(np.arange(24) < 8, 5, 6) * np.ones_like(labels)
    truth, segments = write(tmp_path / "t.zarr", labels), write(tmp_path / "s.zarr", found)
    result = figures(segments, truth, "--protocol", "cremi")
    # 25 nm are 4 voxels of 6 nm beyond the two at the boundary, on both sides of it.
    assert (result["border"], result["voxels"]) == (25, 2 * 4 * (24 - 10))
    assert result["voi"] == pytest.approx(figures(segments, truth, "--protocol", "cremi", "--border", 25)["voi"])
    assert figures(segments, truth)["border"] == 0
    code, _, stderr = run(segments, write(tmp_path / "u.zarr", labels, UNKNOWN), "--protocol", "cremi")
    assert code == 1
    assert "--border 0" in stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.int32])
def test_voxels_that_nobody_labelled_are_not_scored(
    tmp_path: Path,
    labels: npt.NDArray[np.int64],
    segments: npt.NDArray[np.int64],
    dtype: npt.DTypeLike,
    protocol: ProtocolName,
) -> None:
    marked, known = np.where(np.indices(SHAPE)[1] < 7, -1, labels), np.ones(SHAPE, np.uint8)
    known[:, :7] = 0
    file = tmp_path / "t.h5"
    with h5py.File(file, "w") as made:
        made["marked"], made["labels"] = marked.astype(dtype), labels.astype(dtype)
        made["known"], made["coarse"] = known, np.ones((3, 10, 12), bool)
    found = write(tmp_path / "s.zarr", segments)
    options = ["--protocol", protocol, "--border", 0]
    result = figures(found, f"{file}:marked", *options, "--worst", 2)
    assert result["unlabelled"] == 6 * 7 * 24
    assert figures(found, f"{file}:labels", *options, "--mask", f"{file}:known", "--worst", 2) == result
    cropped = figures(found, f"{file}:labels", *options, "--crop", ":,7:,:")
    assert all(result[name] == cropped[name] for name in ("voi", "arand", "voxels", "segments", "objects"))
    assert figures(found, f"{file}:labels", *options, "--mask", f"{file}:coarse")["unlabelled"] == 0
    code, stdout, _ = run(found, f"{file}:marked", *options)
    assert (code, stdout.splitlines()[-1].endswith(", without 1008 unlabelled voxels")) == (0, True)


def test_other_negative_labels_and_other_masks_are_refused(tmp_path: Path, labels: npt.NDArray[np.int64]) -> None:
    file = tmp_path / "t.h5"
    with h5py.File(file, "w") as made:
        made["two"], made["one"] = np.where(labels == 1, -2, labels), np.where(labels == 1, -1, labels)
        made["labels"], made["mask"] = labels, np.ones((5, 20, 24), np.uint8)
    truth = f"{file}:labels"
    for arguments, message in (
        ((truth, f"{file}:two"), "-2 at voxel"),
        ((f"{file}:one", truth), "-1 at voxel"),
        ((truth, truth, "--mask", f"{file}:mask"), "the mask has shape (5, 20, 24)"),
    ):
        code, stdout, stderr = run(*arguments)
        assert (code, stdout) == (1, "")
        assert message in stderr


def test_voxels_near_unlabelled_ones_are_left_out_where_a_border_is(tmp_path: Path) -> None:
    labels = np.ones(SHAPE, np.int64)
    marked = np.where(np.indices(SHAPE)[1] < 7, -1, labels)
    file = tmp_path / "t.h5"
    with h5py.File(file, "w") as made:
        made["marked"], made["labels"], made["known"] = marked, labels, marked >= 0
        for name in ("marked", "labels"):
            made[name].attrs["resolution"] = NM.voxel_size
    found = write(tmp_path / "s.zarr", labels)
    result = figures(found, f"{file}:marked", "--border", 6)
    # Of the 13 rows that are labelled, the one at the others' and the one beside it.
    assert (result["voxels"], result["unlabelled"]) == (6 * 11 * 24, 6 * 7 * 24)
    assert figures(found, f"{file}:labels", "--border", 6, "--mask", f"{file}:known") == result


def two_errors(folder: Path) -> tuple[Path, Path]:
    """A segmentation that cuts object 1 at x = 10 and joins objects 2 and 3 at y = 15, and the truth."""
    labels, found = np.ones(SHAPE, np.int64), np.full(SHAPE, 7)
    labels[:, 12:15], labels[:, 15:] = 2, 3
    found[:, :12, 10:], found[:, 12:] = 8, 9
    return write(folder / "s.zarr", found), write(folder / "t.zarr", labels)


def test_the_largest_errors_are_shown_where_they_are(tmp_path: Path) -> None:
    found, truth = two_errors(tmp_path)
    result = figures(found, truth, "--worst", 3)
    (split,), (merge,) = result["splits"], result["merges"]
    assert (split["object"], split["segments"], split["voxels"]) == (1, [8, 7], [6 * 12 * 14, 6 * 12 * 10])
    assert (split["voxel"][2], split["faces"], split["gap_nm"]) == (9, 6 * 12, 6)
    assert (merge["segment"], merge["objects"], merge["voxels"]) == (9, [3, 2], [6 * 5 * 24, 6 * 3 * 24])
    assert (merge["voxel"][1], merge["faces"]) == (14, 6 * 24)
    assert split["nm"] == [30 * split["voxel"][0], 6 * split["voxel"][1], 6 * split["voxel"][2]]
    code, stdout, _ = run(found, truth, "--worst", 3)
    assert code == 0
    assert "largest splits" in stdout
    assert "144 faces touch" in stdout
    assert "largest merges" in run(truth, truth, "--worst", 3)[1].splitlines()[-1]


@pytest.mark.parametrize("name", ["o.json", "o.csv"])
def test_what_objects_cost_can_be_written(tmp_path: Path, name: str) -> None:
    found, truth = two_errors(tmp_path)
    result = figures(found, truth, "--crop", "1:4,:,2:", "--objects", tmp_path / name)
    if name == "o.json":
        rows = json.loads((tmp_path / name).read_text())
        assert (rows["splits"], rows["merges"]) == (result["splits"], result["merges"])
        objects = rows["objects"]
        assert sum(row["voi_merge"] for row in objects) == pytest.approx(result["voi_merge"])
        assert sorted(row["object"] for row in objects) == [1, 2, 3]
        return
    lines = (tmp_path / name).read_text().splitlines()
    assert (len(lines), lines[0].split(",")[:3]) == (4, ["object", "voxels", "segments"])
    titles, split = (line.split(",") for line in (tmp_path / "o.splits.csv").read_text().splitlines())
    row = dict(zip(titles, split, strict=True))
    assert (row["object"], row["segment_1"], row["x"], row["x_nm"]) == ("1", "8", "9", "54.0")
    assert (tmp_path / "o.merges.csv").read_text().startswith("segment,object_1,object_2,")


def test_score_may_be_said(tmp_path: Path) -> None:
    found, truth = two_errors(tmp_path)
    assert figures("score", found, truth) == figures(found, truth)


@pytest.mark.parametrize("name", ["t.zarr/zarr.json/o.csv", "folder.json", "o.csv"])
def test_a_report_that_cannot_be_written_is_an_error_before_anything_is_scored(tmp_path: Path, name: str) -> None:
    two_errors(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "o.merges.csv").mkdir()
    code, stdout, stderr = run(tmp_path / "none.zarr", tmp_path / "t.zarr", "--objects", tmp_path / name)
    assert (code, stdout) == (1, "")
    assert "cannot be written" in stderr


def test_a_report_is_written_into_a_new_folder(tmp_path: Path) -> None:
    found, truth = two_errors(tmp_path)
    assert run(found, truth, "--objects", tmp_path / "new" / "o.json")[0] == 0
    assert (tmp_path / "new" / "o.json").is_file()


def test_a_report_that_fails_leaves_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("cannot be written: the disk is full")

    monkeypatch.setattr(eval_report, "write_text", full)
    code, stdout, stderr = run(*two_errors(tmp_path), "--objects", tmp_path / "o.json", "--json")
    assert code == 1
    assert json.loads(stdout)["objects"] == 3
    assert "the disk is full" in stderr


def test_people_read_total_split_and_merge(tmp_path: Path, labels: npt.NDArray[np.int64]) -> None:
    truth = write(tmp_path / "t.zarr", labels)
    code, stdout, stderr = run(write(tmp_path / "s.zarr", np.ones(SHAPE, np.int64)), truth, "--min-size", 10)
    assert (code, stderr) == (0, "")
    voi, arand, cremi, rules = stdout.splitlines()
    assert voi.startswith("VOI    2.")
    assert "(split 0.0000 + merge 2." in voi
    assert arand.startswith("ARAND  0.")
    assert cremi.startswith("CREMI  ")
    assert rules.endswith("standard, region 0:6,0:20,0:24, ids of at least 10 voxels")


def test_the_installed_command_scores_real_data_as_published(shared_data: Callable[[str], Path]) -> None:
    file = shared_data("fib25_t2.h5")
    command = [Path(sys.executable).parent / "fgnet-eval", f"{file}:ffn_segmentation", f"{file}:labels", "--json"]
    options = ["--crop", "200:250,:,:", "--min-size", "100"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    scores = json.loads(result.stdout)
    assert result.stderr == ""
    # The README of the data gives two digits, with the network's background as one segment.
    assert [scores["voi_split"], scores["voi_merge"]] == pytest.approx([1.12, 1.15], abs=0.01)


def test_help_starts_without_heavy_imports() -> None:
    code = "import sys, fgnet.cli.eval; sys.exit(any(m in sys.modules for m in ('numpy', 'numba', 'zarr', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
