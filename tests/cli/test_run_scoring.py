"""What fgnet-run says of the decoder that it takes, where that is not as the model advises."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer import BadParameter
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.cli.run_decoding import MOST_FOR_WATERZ, DecodingRequest
from fgnet.engine.bundle import Decoding
from fgnet.engine.run_record import read_record

NO_SCORES = {"scoring": None, "quantile": None}
ADVISED = Decoding(mean_threshold=0.8)


def note(voxels: int = 1000, advised: Decoding = ADVISED, **options: Any) -> str | None:
    fields = dict.fromkeys(DecodingRequest.__dataclass_fields__)
    return DecodingRequest(**fields | {"decoder": "auto"} | options).note(voxels, advised)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold": "0.5,0.6"}, "several thresholds ask for it"),
        ({"workers": 2}, "--workers asks for it"),
        ({"save_graph": Path("g.zarr")}, "--save-graph asks for it"),
        ({"voxels": MOST_FOR_WATERZ + 1}, "too large for waterz"),
    ],
)
def test_what_changes_the_scores_is_said(options: dict[str, Any], reason: str) -> None:
    told = note(**options)
    assert told is not None
    assert "decoder blockwise, mean affinity: " in told
    assert reason in told


def test_a_large_region_in_memory_is_said() -> None:
    large = {"voxels": MOST_FOR_WATERZ + 1, "advised": Decoding()}
    told = note(**large)
    assert told is not None
    assert "decoder waterz, with all 134 Mvoxels in memory: " in told
    assert "--decoder blockwise --threshold T" in told
    # Whoever asks for scores by quantiles asks for waterz.
    assert note(**large, scoring="quantile") is None
    assert note(**large, decoder="waterz") is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": "0.5"},
        {"workers": 2, "scoring": "mean"},
        {"workers": 2, "advised": Decoding(scoring="mean")},
        {"workers": 2, "decoder": "blockwise"},
        {"decoder": "none"},
    ],
)
def test_what_is_as_advised_or_asked_for_is_not_said(options: dict[str, Any]) -> None:
    assert note(**options) is None


@pytest.mark.parametrize(
    ("options", "advised", "message"),
    [
        ({"scoring": "mean", "quantile": 50}, "quantile", "scores by mean have none"),
        ({"scoring": "mean", "quantile": 50, "decoder": "waterz"}, "mean", "scores by mean have none"),
        ({"quantile": 50}, "mean", "add --scoring quantile"),
        ({"quantile": 50}, "quantile", None),
        ({"quantile": 50, "scoring": "quantile"}, "mean", None),
        ({"scoring": "mean"}, "quantile", None),
        # What the model recommends was not asked for.
        ({}, "mean", None),
    ],
)
def test_a_quantile_that_nothing_reads_is_refused(options: dict[str, Any], advised: str, message: str | None) -> None:
    request = DecodingRequest(**{"decoder": "auto", "threshold": None, "fragments": None} | NO_SCORES | options)
    with nullcontext() if message is None else pytest.raises(BadParameter, match=message):
        request.refuse_unread(Decoding(scoring=advised, quantile=75))


def test_a_run_that_goes_on_keeps_its_options(tiny_bundle: Path, tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "v.zarr"), data=np.zeros((4, 64, 64), np.uint8))
    command = [tmp_path / "v.zarr", "--model", tiny_bundle, "--scoring", "mean", "--quantile", 50, "--threshold", 0.5]
    command += ["--decoder", "waterz", "--dry-run"]
    assert CliRunner().invoke(app, [str(part) for part in command]).exit_code == 2
    assert CliRunner().invoke(app, [str(part) for part in (*command, "--resume")]).exit_code == 0


@pytest.mark.parametrize(
    ("thresholds", "decoder", "scoring"), [("0.6", "waterz", "quantile"), ("0.6,0.5", "blockwise", "mean")]
)
def test_decoder_and_scoring_are_told(
    thresholds: str, decoder: str, scoring: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    zarr.create_array(str(tmp_path / "v.zarr"), data=gray)
    options = ["--model", tiny_bundle, "-o", tmp_path / "out.zarr", "--threshold", thresholds, "--json"]
    result = CliRunner().invoke(app, [str(tmp_path / "v.zarr"), *map(str, options)])
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "out.zarr")
    assert record is not None
    for told in (json.loads(result.stdout), record, record["decoding"]):
        assert (told["decoder"], told["scoring"]) == (decoder, scoring)
    assert ("several thresholds ask for it" in result.stderr) == (decoder == "blockwise")
