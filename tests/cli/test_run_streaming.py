"""What fgnet-run tells of a run before, while and after it streams, and what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr
from typer.testing import CliRunner, Result

from fgnet.cli.run import app
from fgnet.engine.run_journal import journal_path
from fgnet.engine.run_record import RESOURCES, record_path
from fgnet.volumes.reading import open_volume

SHAPE = (8, 100, 140)


@pytest.fixture(scope="module")
def gray() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture(scope="module")
def volume(gray: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("gray") / "v.zarr"
    zarr.create_array(str(store), shape=SHAPE, chunks=(4, 64, 64), dtype="u1")[:] = gray
    return store


Run = Callable[..., Result]


@pytest.fixture
def run(volume: Path, tiny_bundle: Path) -> Run:
    def invoke(*options: object, succeeds: bool = True) -> Result:
        result = CliRunner().invoke(app, [str(volume), "--model", str(tiny_bundle), *map(str, options)])
        assert (result.exit_code == 0) == succeeds, result.output
        return result

    return invoke


def affinities(store: Path) -> npt.NDArray[np.uint8]:
    with open_volume(store, ndim=(4,)) as opened:
        values: npt.NDArray[np.uint8] = opened.read(opened.box)
    return values


@pytest.fixture
def whole(run: Run, tmp_path: Path) -> npt.NDArray[np.uint8]:
    run("-o", tmp_path / "whole.zarr", "--decoder", "none")
    return affinities(tmp_path / "whole.zarr")


def test_without_a_decoder_the_output_is_the_affinities(run: Run, whole: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    output = tmp_path / "segmentation.zarr"
    run("-o", output, "--save-affinities")
    np.testing.assert_array_equal(whole, affinities(Path(f"{output}/affinities")))
    assert whole.shape == (3, *SHAPE)


def test_affinities_that_nobody_wants_do_not_stay(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "segmentation.zarr"
    run("-o", output)
    assert not (output / "affinities").exists()
    assert not journal_path(output).exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    told = run("-o", output, "--dry-run", "--stride", "2,32,32").stdout
    for expected in ("stride 2 x 32 x 32", "sums of unfinished chunks", "waterz", "blocks", "MiB"):
        assert expected in told
    assert "not counted" in told
    assert "waterz" not in run("-o", output, "--dry-run", "--decoder", "none").stdout
    blockwise = run("-o", output, "--dry-run", "--decoder", "blockwise", "--threshold", "0.6").stdout
    assert "a block for each thread or worker" in blockwise
    plan = json.loads(run("-o", output, "--dry-run", "--json", "--memory", "0.0015").stdout)
    assert plan["plan"]["tiles"] > 1
    assert plan["device_memory"]["sum_bytes"] <= 0.0015 * 2**30
    assert list(tmp_path.iterdir()) == []


def test_sections_that_are_decoded_again_and_again_are_warned_of(
    gray: npt.NDArray[np.uint8], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgnet.engine.run_estimate.BUDGET", 2 * gray[0].size)
    stack = tmp_path / "v.tif"
    tifffile.imwrite(stack, gray, compression="zlib")
    command = [str(stack), "--model", str(tiny_bundle), "--backend", "onnxruntime", "--decoder", "none"]
    command += ["-o", str(tmp_path / "out.zarr")]
    for options, where in (["--dry-run"], "stdout"), ([], "stderr"):
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 0, result.stderr
        assert getattr(result, where).count("convert the volume to Zarr") == 1


def test_too_little_memory_is_refused_with_what_would_do(run: Run, tmp_path: Path) -> None:
    result = run("-o", tmp_path / "out.zarr", "--memory", "0.001", succeeds=False)
    assert "--memory" in result.stderr
    assert "GiB at least" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_record_beside_the_output_says_what_was_done_with_what(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    printed = json.loads(run("-o", output, "--json").stdout)
    record = json.loads(record_path(output).read_text())
    assert printed.items() <= record.items()
    assert record["identity"]["shape"] == list(SHAPE)
    assert record["plan"]["blocks"] == record["streaming"]["blocks"]
    assert set(record["streaming"]["resources"]) == set(RESOURCES)
    assert record["streaming"]["peak_memory_bytes"] > 1 << 20
    assert {"fgnet", "numpy", "zarr"} <= record["versions"].keys()
    assert all(len(digest) == 64 for digest in record["bundle"]["files"].values())


def test_servers_read_a_line_of_json_for_every_event(run: Run, tmp_path: Path) -> None:
    result = run("-o", tmp_path / "out.zarr", "--log-json")
    lines: list[dict[str, Any]] = [json.loads(line) for line in result.stderr.splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "message"
    assert "start" in events
    assert events[-1] == "finished"
    progress = [line for line in lines if line["event"] == "progress"]
    assert [line["phase"] for line in progress][-1] == "writing"
    assert progress[0]["blocks"] >= progress[0]["done"] > 0
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_an_error_is_an_event_too(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    result = run("-o", output, "--log-json", succeeds=False)
    *lines, last = result.stderr.splitlines()
    assert json.loads(lines[-1])["event"] == "error"
    assert last.startswith("error: ")


def test_outside_of_a_mask_there_are_no_affinities_and_inside_the_same(
    run: Run, whole: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    tissue = np.zeros((8, 50, 70), np.uint8)
    tissue[:, :20, :30] = 1
    mask = tmp_path / "mask.zarr"
    zarr.create_array(str(mask), shape=tissue.shape, chunks=tissue.shape, dtype="u1")[:] = tissue
    output = tmp_path / "out.zarr"
    run("-o", output, "--decoder", "none", "--mask", mask)
    found, fine = affinities(output), tissue.repeat(2, 1).repeat(2, 2).astype(bool)
    np.testing.assert_array_equal(found, whole * fine)
    record = json.loads(record_path(output).read_text())
    assert record["streaming"]["blocks"] < record["plan"]["blocks"]


def test_a_mask_that_does_not_fit_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    mask = tmp_path / "mask.zarr"
    zarr.create_array(str(mask), shape=(5, 50, 70), chunks=(5, 50, 70), dtype="u1")
    result = run("-o", tmp_path / "out.zarr", "--mask", mask, succeeds=False)
    assert "the mask has shape" in result.stderr
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("memory", ["0.0015", "1"])
def test_tiles_change_no_byte(run: Run, whole: npt.NDArray[np.uint8], tmp_path: Path, memory: str) -> None:
    run("-o", tmp_path / "out.zarr", "--decoder", "none", "--memory", memory)
    np.testing.assert_array_equal(affinities(tmp_path / "out.zarr"), whole)
