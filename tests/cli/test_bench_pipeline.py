from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from fgnet.cli.bench import app


def test_the_table_and_the_file_hold_the_rows_that_were_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    tissue, file = tmp_path / "tissue.h5", tmp_path / "speed.json"
    with h5py.File(tissue, "w") as opened:
        opened["gray"] = np.random.default_rng(0).integers(0, 256, (4, 64, 70), dtype=np.uint8)
    words = [str(tiny_bundle), "--volume", f"{tissue}:gray", "--baselines", "", "--repeats", "1", "--threads", "1"]
    run = ["--", "--threshold", "0.3", "--min-size", "20"]
    places = ["-o", str(file), "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, ["pipeline", *words, *places, *run])
    assert result.exit_code == 0, result.output
    told = json.loads(file.read_text())
    (row,) = told["results"]
    assert row["name"] == "fgnet-run --threshold 0.3 --min-size 20"
    assert (row["ratio"], told["ratio"], row["voi_to_reference"], row["voi_to_truth"]) == (None, None, None, None)
    assert (told["decoding"]["threshold"], told["decoding"]["min_size"]) == (0.3, 20)
    assert (told["volume"], told["shape"], told["repeats"]) == ("tissue.h5:gray", [4, 64, 70], 1)
    # What it was called with can be repeated, and tells no folder of this machine.
    named = [tiny_bundle.name, "--volume", "tissue.h5:gray", *words[3:]]
    assert told["command"] == ["fgnet-bench", "pipeline", *named, *run]
    assert str(tmp_path.parent) not in file.read_text()
    assert str(tiny_bundle.parent) not in file.read_text()
    assert "peak memory" in result.stdout
    assert "affinities" in result.stdout
    assert "VOI to paper" not in result.stdout
    assert sorted(tmp_path.iterdir()) == [file, tissue]


def test_if_fgnet_run_fails_so_does_the_benchmark(tiny_bundle: Path, tmp_path: Path) -> None:
    words = [str(tiny_bundle), "--shape", "4,64,64", "--baselines", "paper", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, ["pipeline", *words, "--", "--threshold", "2"])
    assert result.exit_code == 1
    assert "error: fgnet-run --threshold 2: threshold: it is 2.0 (give a score from 0 to 1)" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--shape", "4,64"], "is not three whole numbers"),
        (["--labels", "l.zarr"], "synthetic neuropil has its own labels"),
        (["--volume", "/nowhere/at/all.zarr"], "all.zarr"),
        (["-o", "/nowhere/at/all.json"], "the folder does not exist"),
        (["--decoder", "blockwise"], "No such option"),
        (["--shape", "4,8,8", "--", "--output", "mine.zarr"], "--output is not for a comparison"),
        (["--shape", "4,8,8", "--run-options", "--dry-run"], "--dry-run is not for a comparison"),
        (["--shape", "4,8,8", "--baselines", "paper,keras"], "there is no way 'keras'"),
        (["--", "--decoder=none"], "without a decoder there is no segmentation to compare"),
        (["--", "--decoder", "blockwise", "--roi", ":,:,:"], "--roi is not for a comparison"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(options: list[str], told: str) -> None:
    small = [] if "--shape" in options else ["--shape", "4,8,8"]
    result = CliRunner().invoke(app, ["pipeline", *small, *options])
    assert result.exit_code in (1, 2)
    assert told in " ".join(result.output.replace("│", " ").split())
