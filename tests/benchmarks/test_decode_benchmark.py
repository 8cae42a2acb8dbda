from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.benchmarks.decode_benchmark import write_affinities
from fgnet.cli.bench import app
from fgnet.postproc.blockwise_decoder import BlockwiseOptions, decode_array
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz


@pytest.fixture
def tissue() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 6, 20, 24), dtype=np.uint8)


@pytest.mark.parametrize("values", ["uint8", "float32"])
def test_volumes_are_made_of_the_piece(tmp_path: Path, tissue: np.ndarray, values: str) -> None:
    write_affinities(tmp_path / "a", (70, 30, 10), tissue, values)
    found = zarr.open_array(tmp_path / "a", mode="r")[:]
    assert found.shape == (3, 70, 30, 10)
    assert found.dtype == values
    if values == "float32":
        assert len(np.unique(found)) > 256
        found = np.rint(found * 255)
    np.testing.assert_array_equal(found[:, :6, :20], tissue[..., :10])
    np.testing.assert_array_equal(found[:, 6:12, 20:], tissue[:, ::-1, ::-1][:, :, :10, :10])


def test_every_decoder_is_measured_and_gives_its_segments(tissue: np.ndarray, tmp_path: Path) -> None:
    affinities = zarr.create_array(str(tmp_path / "a.zarr"), shape=tissue.shape, dtype="uint8")
    affinities[:] = tissue
    output = tmp_path / "decode.json"
    options = ["--affinities", str(tmp_path / "a.zarr"), "--shape", "6,20,24;12,20,24", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, ["decode", *options, "--repeats", "1", "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert json.loads(output.read_text()) == told
    assert told["affinities"] == "a.zarr"
    rows = {(row["name"], row["shape"][0]): row for row in told["results"]}
    assert len(rows) == len(told["results"]) == 2 * 2 * 4
    for row in rows.values():
        assert row["seconds"] > 0
        assert row["peak_memory_bytes"] > 1 << 20
    for fragments in ("affinity", "sections"):
        waterz = WaterzOptions(fragments=fragments, scoring="mean")
        (theirs,) = decode_waterz(tissue, [0.8], waterz)
        (ours,) = decode_array(tissue, BlockwiseOptions((0.8,), watershed=flow(fragments)))
        assert rows[f"waterz, {fragments}, uint8", 6]["segments"] == compact_ids(theirs).max()
        for name in ("1 worker", "2 workers"):
            assert rows[f"blockwise, {fragments}, {name}", 6]["segments"] == ours.max()
        best = min(rows[f"blockwise, {fragments}, {n}", 12]["seconds"] for n in ("1 worker", "2 workers"))
        expected = rows[f"waterz, {fragments}, uint8", 12]["seconds"] / best
        assert told["ratio"][fragments] == pytest.approx(expected, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "decode.json"]
    table = CliRunner().invoke(app, ["decode", *options[:2], "--shape", "6,20,24", "--repeats", "1"])
    assert "waterz, sections, float32" in table.stdout


def flow(fragments):
    from fgnet.postproc.watershed import WatershedOptions

    return WatershedOptions(flow=fragments)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fragments", "cubes"], "is not affinity, sections or both"),
        (["--workers", "0"], "are not whole numbers"),
        (["--shape", "4,64"], "is not three whole numbers"),
        (["-o", "/nowhere/at/all.json"], "the folder does not exist"),
        (["--affinities", "/nowhere/at.zarr"], "at.zarr"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["decode", *options])
    assert result.exit_code != 0
    assert told in " ".join(result.output.replace("│", " ").split())
