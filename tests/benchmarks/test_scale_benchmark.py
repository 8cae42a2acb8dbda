from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fgnet.benchmarks.machine import describe_machine
from fgnet.benchmarks.scale_benchmark import ScaleBenchmark, ScaleRow, _middle, fitted_exponent, write_volume
from fgnet.benchmarks.scale_table import render_scale
from fgnet.cli.bench import app
from fgnet.volumes.reading import open_volume


@pytest.mark.parametrize("power", [0.9, 1.0, 1.3])
def test_the_exponent_is_that_of_the_growth(power: float) -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    assert fitted_exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)
    assert fitted_exponent([1.0], [2.0]) is None


def test_a_volume_of_any_size_is_mirrored_from_a_piece(tmp_path: Path) -> None:
    tissue = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    write_volume(tmp_path / "v.zarr", (70, 12, 3), tissue)
    with open_volume(tmp_path / "v.zarr") as volume:
        found = volume.read(volume.box)
    mirrored = np.concatenate([tissue, tissue[::-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, ::-1]], axis=1)
    np.testing.assert_array_equal(found, np.tile(mirrored, (12, 2, 1))[:70, :12, :3])


def test_every_size_is_run_and_told(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "scale.json"
    options = ["--shape", "4,64,80", "--factors", "1,3", "--folder", str(tmp_path), "-o", str(output), "--json"]
    run = ["--", "--decoder", "none", "--model", str(tiny_bundle), "--threads", "1"]
    result = CliRunner().invoke(app, ["scale", *options, *run])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert json.loads(output.read_text()) == told
    first, second = told["results"]
    assert (first["shape"], second["shape"]) == ([4, 64, 80], [12, 64, 80])
    assert second["blocks"] == 5 * first["blocks"]
    for row in told["results"]:
        assert (row["processes"], row["all_seconds"]) == (1, [row["seconds"]])
        assert 0 < row["affinities_seconds"] < row["seconds"]
        assert row["peak_memory_bytes"] > 1 << 20
        assert set(row["resources"]) >= {"the network", "writing"}
    # Of the command, no folder of this machine.
    assert told["command"] == ["fgnet-run", "VOLUME", *run[1:4], tiny_bundle.name, *run[5:]]
    assert told["backend"] == "onnxruntime" or told["backend"] == "openvino"
    assert [path for path in tmp_path.iterdir() if path.name.startswith("fgnet-scale")] == []
    table = CliRunner().invoke(app, ["scale", *options[:-3], *run])
    assert "12 x 64 x 80" in table.stdout


def test_the_table_tells_the_speed_of_the_whole_command() -> None:
    from rich.console import Console

    row = ScaleRow(
        factor=1, shape=(1, 1000, 8000), processes=1, voxels=8_000_000, seconds=8.0, all_seconds=(8.0,),
        affinities_seconds=4.0, voxels_per_second=2e6, blocks=1, block_voxels_per_second=3_000_000,
        peak_memory_bytes=None, bottleneck="", resources={"the network": 1.0},
    )  # fmt: skip
    benchmark = ScaleBenchmark("m", "b", "fp32", ["fgnet-run"], describe_machine(), (row,), None)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_scale(benchmark))
    (line,) = (line for line in captured.get().splitlines() if "1 x 1000 x 8000" in line)
    assert line.split()[5:] == ["1", "1", "8.0", "1.00", "1.000", "4.0", "1", "3,000,000", "100%"]


def test_of_several_repeats_the_one_in_the_middle_is_told_with_the_seconds_of_all() -> None:
    rest = {"factor": 1, "shape": (1, 1, 1), "processes": 1, "voxels": 1, "all_seconds": (), "resources": {}}
    rest |= {"affinities_seconds": 1.0, "voxels_per_second": 1.0, "block_voxels_per_second": 1.0, "bottleneck": ""}
    runs = [
        ScaleRow(seconds=seconds, blocks=blocks, peak_memory_bytes=1, **rest)
        for blocks, seconds in enumerate((5.0, 1.0, 3.0))
    ]
    found = _middle(runs)
    assert (found.seconds, found.blocks, found.all_seconds) == (3.0, 2, (5.0, 1.0, 3.0))
    assert _middle(runs[:2]).seconds == 3.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--axis", "w"], "is no axis"),
        (["--factors", "1,x"], "are not whole numbers"),
        (["--factors", "0"], "are not whole numbers"),
        (["--processes", "0"], "are not whole numbers"),
        (["--shape", "4,64"], "is not three whole numbers"),
        (["-o", "/nowhere/at/all.json"], "the folder does not exist"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["scale", *options])
    assert result.exit_code in (1, 2)
    assert told in " ".join(result.stderr.replace("│", " ").split())


def test_a_run_that_fails_ends_the_benchmark_with_its_error(tmp_path: Path) -> None:
    options = ["--shape", "4,64,64", "--factors", "1", "--folder", str(tmp_path), "--", "--decoder", "none"]
    result = CliRunner().invoke(app, ["scale", *options, "--model", str(tmp_path / "missing.bundle")])
    assert result.exit_code == 1
    assert "no bundle here" in result.stderr
